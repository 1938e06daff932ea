"""A class keeps its id for life: in every file, before and after merges, and merges of merges."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unsupseg_cli import (
    EvalConfig,
    PredictConfig,
    TrainConfig,
    classes,
    evaluate,
    predict,
    refine,
    train,
)
from unsupseg_cli.contents import class_sheet, model_classes
from unsupseg_cli.contents.label_maps import LabelMaps, read_ids
from unsupseg_cli.contents.model import BackboneRef, ModelFile, read_model
from unsupseg_cli.contents.model_classes import classes_record, merge
from unsupseg_cli.contents.model_file import take_model
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.methods.kmeans.config import TrainOptions as KMeansTrain
from unsupseg_cli.pipeline.export import export
from unsupseg_cli.pipeline.export_labels import export_labels
from unsupseg_cli.pipeline.options import ExportConfig, ExportLabelsConfig
from unsupseg_cli.pipeline.report import gather
from unsupseg_cli.stages.classes import ClassesConfig
from unsupseg_cli.stages.refine import RefineConfig

CLASSES = 5


@pytest.fixture
def merged(model, context):
    """The model after 3 took in 1: its ids are 0, 2, 3, 4."""
    return classes(ClassesConfig(model=model.id, merge=(("3", "1"),)), context)


def segment(model, blocks, context, **options):
    return predict(PredictConfig(model=model.id, dataset=f"{blocks}/", workers=0, **options), context)


def id_maps(predictions):
    return np.stack([read_ids(predictions.path, key) for key in predictions.manifest.summary["keys"]])


def test_files_before_and_after_a_merge_hold_the_same_ids(model, merged, blocks, context, tmp_path):
    for name, used in (("before", model), ("after", merged)):
        segment(used, blocks, context, out=tmp_path / name)
    for kind in ("ids", "color"):
        before, after = (
            [Image.open(path) for path in sorted((tmp_path / name / kind).rglob("*.png"))]
            for name in ("before", "after")
        )
        assert len(before) == len(after) == 4
        for first, second in zip(before, after, strict=True):
            expected = np.array([0, 3, 2, 3, 4])[np.asarray(first)]
            np.testing.assert_array_equal(np.asarray(second), expected)
            if kind == "color":
                assert first.mode == second.mode == "P"
                palettes = [np.array(picture.getpalette()).reshape(-1, 3) for picture in (first, second)]
                np.testing.assert_array_equal(palettes[0][[0, 2, 3, 4]], palettes[1][[0, 2, 3, 4]])
    entries = [json.loads((tmp_path / name / "classes.json").read_text()) for name in ("before", "after")]
    kept = [
        entry | {"clusters": [1, 3]} if entry["id"] == 3 else entry
        for entry in entries[0]
        if entry["id"] != 1
    ]
    assert entries[1] == kept


def test_maps_of_before_are_read_after_merges_of_merges(model, merged, blocks, context):
    before = segment(model, blocks, context)
    again = classes(ClassesConfig(model=merged.id, merge=(("4", "0"),)), context)
    middle = classes(ClassesConfig(model=merged.id, predictions=before.id), context)
    for source in (before, middle):
        applied = classes(ClassesConfig(model=again.id, predictions=source.id), context)
        np.testing.assert_array_equal(id_maps(applied), np.array([4, 3, 2, 3, 4])[id_maps(before)])


def test_a_merged_model_is_refined_shown_and_exported_under_its_ids(
    merged, blocks, context, tmp_path, monkeypatch
):
    predictions = segment(merged, blocks, context, only="3")
    assert {2, 3, 4} <= set(np.unique(id_maps(predictions)))
    shown = np.asarray(Image.open(next((predictions.path / "color").rglob("*.png"))))
    assert set(np.unique(shown)) <= {3, 255}
    refined = refine(RefineConfig(predictions=predictions.id, label_confidence=0.999, workers=1), context)
    assert np.mean(id_maps(refined) == id_maps(predictions)) > 0.9
    notes = []
    monkeypatch.setattr(class_sheet, "grid", lambda rows, labels, **_: notes.extend(labels))
    class_sheet.class_sheet(merged, read_model(merged)[0], context)
    shares = [(id_maps(refined) == number).mean() for number in (0, 2, 3, 4)]
    assert notes == [
        f"{number}   class {number}   {100 * share:.1f} % of the pixels"
        for number, share in zip((0, 2, 3, 4), shares, strict=True)
    ]
    file = export(ExportConfig(out=tmp_path / "model.safetensors"), merged.id, context)
    taken = take_model(str(file), context)
    assert read_model(taken)[0].classes == read_model(merged)[0].classes


def test_an_evaluation_names_clusters_by_their_ids(model, merged, blocks, context, tmp_path):
    (tmp_path / "labels").mkdir()
    predictions = segment(merged, blocks, context)
    for key, values in zip(predictions.manifest.summary["keys"], id_maps(predictions), strict=True):
        Image.fromarray(np.searchsorted([0, 2, 3, 4], values).astype(np.uint8)).save(
            tmp_path / "labels" / key
        )
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    labels = {"labels": tmp_path / "labels", "class_file": tmp_path / "classes.txt", "workers": 0, "sheet": 1}
    config = EvalConfig(dataset=f"{blocks}/", **labels)
    found = evaluate(config.model_copy(update={"predictions": predictions.id}), context)
    assert found.manifest.summary["accuracy"] == 1
    scored = evaluate(config.model_copy(update={"model": merged.id, "protocol": "native"}), context)
    for evaluation in (found, scored):
        rows = list(csv.reader((evaluation.path / "confusion.csv").open()))
        assert [row[:2] for row in rows[1:]] == [["0", "a"], ["2", "b"], ["3", "c"], ["4", "d"]]
    (confusion,) = gather([found], context).confusions
    assert confusion.note == "Clusters of each class: a: 0; b: 2; c: 3; d: 4."
    other = classes(ClassesConfig(model=model.id, merge=(("1", "0"),)), context)
    with pytest.raises(UsageError, match="matches the clusters 0, 2-4, but here they are 1-4"):
        evaluate(config.model_copy(update={"model": other.id, "assignment": found.id}), context)


def labelled(blocks, folder):
    """Return what evaluates a model of the blocks, whose labels are all of one class."""
    (folder / "labels").mkdir()
    for path in sorted(blocks.glob("*.png")):
        with Image.open(path) as image:
            Image.new("L", image.size).save(folder / "labels" / path.name)
    (folder / "classes.txt").write_text("a\nb\n")
    labels = {"labels": folder / "labels", "class_file": folder / "classes.txt"}
    return EvalConfig(dataset=f"{blocks}/", protocol="native", workers=0, sheet=1, **labels)


def test_a_matching_is_of_the_classes_that_were_merged(model, blocks, context, tmp_path):
    """Merged into 2 or into 3, class 4 leaves the ids 0-3: the ids alone do not tell these models apart."""
    first, second = (classes(ClassesConfig(model=model.id, merge=((into, "4"),)), context) for into in "23")
    config = labelled(blocks, tmp_path)
    matched = evaluate(config.model_copy(update={"model": first.id}), context)
    of_maps = segment(second, blocks, context)
    for scored in ({"model": second.id}, {"predictions": of_maps.id}):
        with pytest.raises(
            UsageError, match=r"outputs 2, 4, but here it is made of 2: other classes were merged"
        ):
            evaluate(config.model_copy(update=scored | {"assignment": matched.id}), context)
    named = classes(ClassesConfig(model=first.id, names={"2": "sky"}), context)
    again = evaluate(config.model_copy(update={"model": named.id, "assignment": matched.id}), context)
    assert again.manifest.summary["assignment"] == matched.manifest.summary["assignment"]
    assert not [line for line in again.manifest.warnings if "another training" in line]


def test_a_matching_of_another_training_is_told(model, blocks, context, tmp_path):
    config = labelled(blocks, tmp_path)
    matched = evaluate(config.model_copy(update={"model": model.id}), context)
    masks = model.input("pseudolabels").id
    other = train(TrainConfig(pseudolabels=masks, seed=3), context, options=KMeansTrain(steps=3))
    scored = evaluate(config.model_copy(update={"model": other.id, "assignment": matched.id}), context)
    assert [line for line in scored.manifest.warnings if "another training" in line]


def test_the_id_of_a_merged_class_says_where_it_went(model, merged, blocks, context, tmp_path):
    predictions = segment(merged, blocks, context)
    things = ExportLabelsConfig(format="coco-panoptic", out=tmp_path / "coco", things=["1"])
    calls = [
        lambda: classes(ClassesConfig(model=merged.id, names={"1": "sky"}), context),
        lambda: classes(ClassesConfig(model=merged.id, merge=(("0", "1"),)), context),
        lambda: segment(merged, blocks, context, only="1"),
        lambda: export_labels(things, predictions.id, context),
    ]
    for refused in calls:
        with pytest.raises(UsageError, match="Class 1 was merged into 3, 'class 3': give that one"):
            refused()
    with pytest.raises(UsageError, match=r"no class '7' \(a name, or one of the ids 0, 2-4\)"):
        classes(ClassesConfig(model=merged.id, names={"7": "sky"}), context)
    twice = classes(ClassesConfig(model=merged.id, merge=(("4", "3"),), names={"0": "sea"}), context)
    for gone in ("1", "3"):
        with pytest.raises(UsageError, match=f"Class {gone} was merged into 4, 'class 4'"):
            classes(ClassesConfig(model=twice.id, names={gone: "sky"}), context)


def test_a_report_of_applied_classes_shows_them_once_under_their_model(model, merged, blocks, context):
    scored = segment(model, blocks, context, keep="scores")
    refined = refine(RefineConfig(predictions=scored.id, workers=1), context)
    named = classes(ClassesConfig(model=merged.id, names={"0": "sky"}), context)
    for before, views in ((scored, ["prediction"]), (refined, ["prediction", "refined"])):
        middle = classes(ClassesConfig(model=merged.id, predictions=before.id), context)
        applied = classes(ClassesConfig(model=named.id, predictions=middle.id), context)
        page = gather([applied], context)
        assert page.notes == []
        assert page.legends[0][0] == f"Classes of {named.id}"
        assert page.legends[0][1][0][0] == "sky"
        (_, _, slides) = page.slides[0]
        assert [name for name, _ in slides[0].views][-len(views) :] == views
        assert len({name for name, _ in slides[0].views}) == len(slides[0].views)


def test_models_and_maps_without_ids_are_read_as_they_were(model, blocks, context, monkeypatch):
    entries = json.loads((model.path / "model.json").read_text())["classes"]
    assert all(entry.keys() == {"name", "color"} for entry in entries)  # so that keys and digests stay
    with monkeypatch.context() as patched:
        patched.setattr(model_classes, "merge", _merge_of_before)
        older = classes(ClassesConfig(model=model.id, merge=(("3", "1"),)), context)
    assert all("id" not in entry for entry in json.loads((older.path / "model.json").read_text())["classes"])
    before, old_maps = segment(model, blocks, context), segment(older, blocks, context)
    np.testing.assert_array_equal(id_maps(old_maps), np.array([0, 2, 1, 2, 3])[id_maps(before)])
    again = classes(ClassesConfig(model=older.id, merge=(("class 2", "0"),)), context)
    assert [(entry.id, entry.name) for entry in read_model(again)[0].classes] == [
        (1, "class 2"),
        (2, "class 3"),
        (3, "class 4"),
    ]
    with pytest.raises(UsageError, match="no class '4'"):  # renumbered ids tell nothing of what was merged
        classes(ClassesConfig(model=older.id, names={"4": "sky"}), context)
    applied = classes(ClassesConfig(model=again.id, predictions=old_maps.id), context)
    np.testing.assert_array_equal(id_maps(applied), np.array([1, 1, 2, 3])[id_maps(old_maps)])


def _merge_of_before(file, groups):
    """Merge as it was when classes behind a merged one got lower numbers."""
    merged = merge(file, groups)
    entries = [entry.model_copy(update={"id": index}) for index, entry in enumerate(merged.classes)]
    return merged.model_copy(update={"classes": entries})


def of_classes(count, ids=None):
    entries = [{"name": f"class {i}", "color": (i, i, 0)} for i in range(count)]
    if ids is not None:
        entries = [entry | {"id": number} for entry, number in zip(entries, ids, strict=True)]
    return ModelFile(
        method="kmeans",
        backbone=BackboneRef(name="tiny", weights_digest="0"),
        feature_heads=[],
        class_head={"type": "linear", "classes": count, "dim": 2},
        geometry={},
        classes=entries,
    )


@given(st.data())
def test_whatever_is_merged_no_other_class_changes(data):
    file = of_classes(data.draw(st.integers(2, 9)))
    belongs = {output: output for output in range(file.outputs)}  # the id of each output's class
    while len(file.classes) > 1 and data.draw(st.booleans()):
        ids = [entry.id for entry in file.classes]
        chosen = data.draw(st.lists(st.sampled_from(ids), min_size=2, unique=True))
        file = merge(file, [[str(number) for number in chosen]])
        belongs = {output: chosen[0] if of in chosen else of for output, of in belongs.items()}
    stored = json.loads(file.model_dump_json())
    file = ModelFile.model_validate(stored)
    assert ModelFile.model_validate(stored) == file
    assert [entry.id for entry in file.entries_of_outputs] == list(belongs.values())
    for record in classes_record(file):
        number = record["id"]
        assert number in record["clusters"]
        assert (record["name"], record["color"]) == (f"class {number}", [number, number, 0])


@pytest.mark.parametrize("ids", [(0, 0, 1), (0, 2, 1), (-1, 0, 1), (0, 1, 40_000)])
def test_ids_that_contradict_are_no_model(ids):
    with pytest.raises(ValueError, match="id"):
        of_classes(3, ids)


def test_label_maps_hold_any_id_and_no_value_without_a_class(tmp_path):
    classes = of_classes(3, (0, 7, 300)).classes
    labels = np.array([[0, 1, 2], [-1, 1, 0]], np.int16)
    maps = LabelMaps(tmp_path, classes)
    assert Image.open(maps.write("a", labels)).mode == "I;16"
    np.testing.assert_array_equal(read_ids(tmp_path, "a"), [[0, 7, 300], [-1, 7, 0]])
    np.testing.assert_array_equal(maps.read("a"), labels)
    for strange in (classes[:2], of_classes(2, (0, 300)).classes):
        with pytest.raises(UnsupsegError, match=r"holds (300|7), which classes\.json does not name"):
            LabelMaps(tmp_path, strange).read("a")
