"""Names, colours and merging: a new model that says the same of every pixel, in other words."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unsupseg_cli import (
    Context,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    TrainConfig,
    classes,
    extract,
    predict,
    pseudolabel,
    refine,
    train,
)
from unsupseg_cli.artifacts.arrays import RowReader
from unsupseg_cli.artifacts.manifest import read_manifest
from unsupseg_cli.artifacts.workspace import Artifact, Workspace
from unsupseg_cli.cli.main import app
from unsupseg_cli.contents.class_sheet import class_sheet
from unsupseg_cli.contents.label_maps import read_ids
from unsupseg_cli.contents.model import read_model
from unsupseg_cli.contents.model_classes import classes_record
from unsupseg_cli.core.errors import StorageError, UnsupsegError, UsageError
from unsupseg_cli.data.labels import LabelSpace
from unsupseg_cli.methods.kmeans.config import TrainOptions as KMeansTrain
from unsupseg_cli.methods.primaps.config import PseudolabelOptions as Primaps
from unsupseg_cli.methods.primaps.config import TrainOptions as PrimapsTrain
from unsupseg_cli.pipeline.export import export
from unsupseg_cli.pipeline.options import ExportConfig
from unsupseg_cli.stages.classes import ClassesConfig
from unsupseg_cli.stages.refine import RefineConfig

CLASSES = 5


def of(artifact, **changes):
    return ClassesConfig(model=artifact.id, **changes)


def segment(model, blocks, context, keep="labels"):
    return predict(PredictConfig(model=model.id, dataset=f"{blocks}/", workers=0, keep=keep), context)


def label_maps(predictions):
    return np.stack([read_ids(predictions.path, key) for key in predictions.manifest.summary["keys"]])


def test_merged_classes_take_their_own_pixels_and_no_others(model, blocks, context):
    before = label_maps(segment(model, blocks, context))
    merged = classes(of(model, merge=[["3", "1"], ["0", "4"]]), context)
    after = segment(merged, blocks, context, keep="scores")
    assert np.array_equal(label_maps(after), np.array([0, 3, 2, 3, 0])[before])
    names = [entry["name"] for entry in classes_record(read_model(merged)[0])]
    assert names == ["class 0", "class 2", "class 3"]
    for key in after.manifest.summary["keys"]:
        scores = RowReader(after.path / "scores" / key)
        log_probs = scores.rows(0, len(scores)).astype(np.float64)
        assert log_probs.shape[0] == 3
        assert np.allclose(np.exp(log_probs).sum(0), 1, atol=5e-3)
    refined = refine(RefineConfig(predictions=after.id, workers=1), context)
    assert set(np.unique(label_maps(refined))) <= {0, 2, 3}


def test_merging_twice_is_merging_at_once(model, blocks, context):
    first = classes(of(model, merge=[["0", "1"]]), context)
    twice = classes(of(first, merge=[["class 0", "class 4"]]), context)
    once = classes(of(model, merge=[["0", "1", "4"]]), context)
    assert twice.manifest.key == once.manifest.key
    assert [one["clusters"] for one in classes_record(read_model(once)[0])] == [[0, 1, 4], [2], [3]]


def test_a_class_keeps_id_name_and_colour_for_life(model, blocks, context):
    merged = classes(of(model, merge=[["1", "0"]]), context)
    again = classes(of(merged, merge=[["4", "2"]], names={"3": "road"}, colors={"1": "#010203"}), context)
    records = classes_record(read_model(again)[0])
    assert [(record["id"], record["name"], record["clusters"]) for record in records] == [
        (1, "class 1", [0, 1]),
        (3, "road", [3]),
        (4, "class 4", [2, 4]),
    ]
    original = read_model(model)[0].classes
    assert [record["color"] for record in records] == [[1, 2, 3], *(list(original[i].color) for i in (3, 4))]
    before, after = label_maps(segment(model, blocks, context)), label_maps(segment(again, blocks, context))
    np.testing.assert_array_equal(after, np.array([1, 1, 4, 3, 4])[before])
    for gone, says in (
        ("0", "Class 0 was merged into 1"),
        ("2", "Class 2 was merged into 4"),
        ("5", "no class '5' .a name, or one of the ids 1, 3-4"),
    ):
        with pytest.raises(UsageError, match=says):
            classes(of(again, names={gone: "sky"}), context)


def test_a_number_that_could_be_two_classes_must_be_a_name(model, context):
    named = classes(of(model, names={"3": "road"}), context)
    swapped = classes(of(named, names={"4": "class 3"}), context)
    with pytest.raises(UsageError, match="'3' may mean 'road', whose id it is, or 'class 3': give the name"):
        classes(of(swapped, names={"3": "street"}), context)
    renamed = read_model(classes(of(swapped, names={"class 3": "street"}), context))[0].classes
    assert [entry.name for entry in renamed[3:]] == ["road", "street"]


def test_codes_of_a_merged_model_start_primaps_with_its_classes(blocks, model, context):
    merged = classes(of(model, merge=[["0", "4"]]), context)
    config = ExtractConfig(dataset=f"{blocks}/", size=72, workers=0, device="cpu")
    codes = extract(config.model_copy(update={"model": merged.id}), context)
    masks = pseudolabel(
        PseudolabelConfig(method="primaps", features=codes.id, classes=4, workers=1),
        context,
        options=Primaps(),
    )
    options = PrimapsTrain(init="model", epochs=1)
    trained = train(TrainConfig(pseudolabels=masks.id), context, options=options)
    assert len(read_model(trained)[0].classes) == 4


def test_names_and_colors_reach_the_predictions(model, blocks, context):
    named = classes(of(model, names={"2": "road", "class 0": "open sky"}), context)
    colored = classes(of(named, colors={"road": "#804080", "0": "70,130,180", "4": "sienna"}), context)
    predictions = segment(colored, blocks, context)
    entries = json.loads((predictions.path / "classes.json").read_text())
    assert [entry["name"] for entry in entries] == ["open sky", "class 1", "road", "class 3", "class 4"]
    assert entries[2]["color"] == [128, 64, 128]
    assert entries[0]["color"] == [70, 130, 180]
    assert entries[4]["color"] == [160, 82, 45]
    assert np.array_equal(label_maps(predictions), label_maps(segment(model, blocks, context)))
    assert read_model(model)[0].classes[2].name == "class 2"  # the trained model stays as it was
    assert segment(model, blocks, context).manifest.key != predictions.manifest.key


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"7": "road"}, "no class '7'"),
        ({"clas 1": "road"}, "did you mean 'class 1'"),
        ({"1": "road", "2": "road"}, "merge them"),
        ({"1": "class 2"}, "merge them"),
        ({"1": "road", "class 1": "street"}, "given twice"),
        ({"1": ""}, "cannot be the name of a class: it is empty"),
        ({"1": "a\nb"}, r"'a\\nb' cannot be the name of a class: it holds characters that do not show"),
        (
            {"1": "a\u202eb"},
            r"'a\\u202eb' cannot be the name of a class: it holds characters that do not show",
        ),
        ({"1": "a,b"}, "without commas"),
        ({"1": "3"}, "number"),
        ({}, "No class was given"),
    ],
)
def test_names_that_would_be_ambiguous_are_refused(model, context, names, message):
    with pytest.raises(UsageError, match=message):
        classes(of(model, names=names), context)


def test_names_of_scripts_with_joiners_are_names(model, context):
    name = (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0646\u0645"  # Persian, with a joiner that shows nothing itself
    )
    assert read_model(classes(of(model, names={"1": name}), context))[0].classes[1].name == name


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([["0"]], "at least two"),
        ([], "at least two"),
        ([["0", "1"], ["1", "2"]], "given twice"),
        ([["0", "0"]], "Class 0, 'class 0', is given twice"),
        ([["0", "9"]], "no class '9'"),
    ],
)
def test_groups_that_make_no_sense_are_refused(model, context, groups, message):
    with pytest.raises(UsageError, match=message):
        classes(of(model, merge=groups), context)


@pytest.mark.parametrize("color", ["1,2,300", "1,2", "#12", "no such color", ""])
def test_what_is_no_color_is_refused(model, context, color):
    with pytest.raises(UsageError, match="is no colour"):
        classes(of(model, colors={"0": color}), context)


def test_the_sheet_shows_predictions_of_this_very_model(model, blocks, context):
    file, _ = read_model(model)
    with pytest.raises(UsageError, match="run `unsupseg predict"):
        class_sheet(model, file, context)
    segment(model, blocks, context)
    picture = np.asarray(class_sheet(model, file, context))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    named = classes(of(model, names={"0": "road"}), context)
    with pytest.raises(UsageError, match="no predictions"):
        class_sheet(named, read_model(named)[0], context)


def test_images_named_one_by_one_are_found_again(model, blocks, context, tmp_path):
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        for picture in blocks.iterdir():
            (tmp_path / name / picture.name).write_bytes(picture.read_bytes())
    config = PredictConfig(model=model.id, workers=0, keep="scores")
    for images in (
        [tmp_path / "left", tmp_path / "right"],
        [tmp_path / "left/0.png", tmp_path / "right/1.png"],
    ):
        predictions = predict(config.model_copy(update={"images": images}), context)
        refined = refine(RefineConfig(predictions=predictions.id, workers=1), context)
        assert refined.manifest.summary["images"] == predictions.manifest.summary["images"]
        class_sheet(model, read_model(model)[0], context, predictions.id)
        class_sheet(model, read_model(model)[0], context, refined.id)
    (tmp_path / "right" / "1.png").write_bytes((blocks / "2.png").read_bytes())
    with pytest.raises(UsageError, match="not those that were predicted"):
        refine(RefineConfig(predictions=predictions.id, workers=1, iterations=2), context)
    (tmp_path / "right" / "1.png").unlink()
    with pytest.raises(
        UsageError, match=r"1\.png' does not exist.*Bring the images of 'images-.*' back, or, .*--force"
    ):
        refine(RefineConfig(predictions=predictions.id, workers=1, iterations=2), context)


def without_networks(monkeypatch):
    monkeypatch.setattr("unsupseg_cli.contents.model.open_model", None)


def outputs(artifact):
    return {name: output.sha256 for name, output in artifact.manifest.outputs.items()}


def test_after_naming_and_merging_no_network_runs(model, blocks, context, monkeypatch):
    segment(model, blocks, context)
    named = classes(of(model, names={"2": "road"}), context)
    merged = classes(of(named, merge=[["road", "0"]]), context)
    computed = predict(
        PredictConfig(model=merged.id, dataset=f"{blocks}/", workers=0, device="cpu"),
        Context(Workspace(context.workspace.root), force=True),
    )
    shutil.rmtree(computed.path)
    without_networks(monkeypatch)
    taken = segment(merged, blocks, context)
    assert taken.manifest.key == computed.manifest.key
    assert outputs(taken) == outputs(computed)
    assert json.loads((taken.path / "classes.json").read_text())[1] == {
        "id": 2,
        "name": "road",
        "color": list(read_model(model)[0].classes[2].color),
        "clusters": [0, 2],
    }
    LabelSpace.from_file(taken.path / "classes.json")  # a class file for the label maps beside it


def test_a_model_is_applied_to_stored_and_to_refined_maps(model, blocks, context, monkeypatch, tmp_path):
    scored = segment(model, blocks, context, keep="scores")
    refined = refine(RefineConfig(predictions=scored.id, workers=1), context)
    merged = classes(of(model, merge=[["3", "1"]]), context)
    without_networks(monkeypatch)
    table = np.array([0, 3, 2, 3, 4])
    for before in (scored, refined):
        applied = classes(ClassesConfig(model=merged.id, predictions=before.id), context)
        assert np.array_equal(label_maps(applied), table[label_maps(before)])
        assert (applied.path / "overlay" / "0.png.jpg").exists()
    again = classes(of(merged, names={"class 0": "sky"}), context)
    twice = classes(ClassesConfig(model=again.id, predictions=applied.id, out=tmp_path / "out"), context)
    assert np.array_equal(label_maps(twice), label_maps(applied))
    assert json.loads((tmp_path / "out" / "classes.json").read_text())[0]["name"] == "sky"
    with pytest.raises(UsageError, match="apart"):
        classes(ClassesConfig(model=model.id, predictions=applied.id), context)
    other = train(TrainConfig(seed=5), context, options=KMeansTrain(steps=3))
    with pytest.raises(UsageError, match="which is not"):
        classes(ClassesConfig(model=other.id, predictions=scored.id), context)
    with pytest.raises(ValueError, match="first"):
        ClassesConfig(predictions=scored.id, names={"0": "sky"})


def test_maps_whose_meaning_changes_are_named(model, blocks, context, tmp_path):
    said = []
    context.reporter.warn = said.append
    before = segment(model, blocks, context)
    merged = classes(of(model, merge=[["0", "1"]]), context)
    assert before.id in said[0]
    assert f"classes apply PREDICTIONS --model {merged.id}" in said[0]
    said.clear()
    one = PredictConfig(images=[blocks / "0.png"], model=model.id, out=tmp_path / "out", workers=0)
    predict(one, context)
    predict(one, context)
    assert not said
    predict(one.model_copy(update={"images": [blocks / "1.png"], "model": merged.id}), context)
    assert "1 label maps of other classes" in said[0]


def test_a_folder_on_a_full_disk_holds_whole_files(model, blocks, context, tmp_path, monkeypatch):
    made = segment(model, blocks, context)
    copy, copied = shutil.copyfile, []

    def filling(source, target):
        copied.append(target)
        if len(copied) > 2:
            Path(target).write_bytes(b"")
            raise OSError(28, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", filling)
    with pytest.raises(
        UnsupsegError, match=r"cannot be written \(No space left on device\): free some space"
    ) as told:
        predict(
            PredictConfig(
                model=model.id, dataset=f"{blocks}/", keep="labels", workers=0, out=tmp_path / "out"
            ),
            context,
        )
    assert str(made.place) in str(told.value)
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == 2
    assert all(Image.open(path).size for path in written)


def test_a_disk_without_room_is_told_before_the_work(model, blocks, context, monkeypatch):
    def segmented(**options):
        config = {"model": model.id, "dataset": f"{blocks}/", "workers": 0, **options}
        return predict(PredictConfig(**config), context)

    free = shutil.disk_usage(blocks)._replace(free=1000)
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda folder: free)
        for options in ({}, {"keep": "scores"}):
            with pytest.raises(StorageError, match=r"`predict` writes needs .* MB but .* --no-overlay"):
                segmented(**options)
    assert not list(context.workspace.artifacts("predictions"))
    assert segmented().manifest.summary["skipped"] == {}


def test_the_command_line(model, blocks, context, tmp_path):
    def call(*arguments, code=0):
        workspace = ("--workspace", str(context.workspace.root))
        result = CliRunner().invoke(app, ["classes", *arguments, *workspace])
        assert result.exit_code == code, result.output
        return result.stdout.strip(), " ".join(result.stderr.split())

    path, _ = call("merge", "0,class 1", "2,3")
    assert path.startswith(str(context.workspace.root / "model"))
    call("name", "0=sky", "class 2= road ")
    call("color", "road=#010203")
    found = json.loads(call("show", "--json")[0])["classes"]
    assert [(one["name"], one["clusters"]) for one in found] == [
        ("sky", [0, 1]),
        ("road", [2, 3]),
        ("class 4", [4]),
    ]
    assert "#010203" in call("show")[0]
    segment(context.workspace.current("model"), blocks, context)
    call("show", "--out", str(tmp_path / "new" / "sheet.png"))
    call("name", "class 4=sea")
    applied, _ = call("apply", "--out", str(tmp_path / "applied"))
    assert Path(applied).parent.name == "predictions"
    assert [one["name"] for one in json.loads((tmp_path / "applied" / "classes.json").read_text())] == [
        "sky",
        "road",
        "sea",
    ]
    assert Image.open(tmp_path / "new" / "sheet.png").width > 300
    call("show", "--out", str(tmp_path / "new" / "sheet.png"))  # its own
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 8)).save(photo)
    before = photo.read_bytes()
    assert "is no class sheet" in call("show", "--out", str(photo), code=2)[1]
    assert photo.read_bytes() == before
    assert "CLASS=VALUE" in call("name", "sky", code=2)[1]
    assert "given twice" in call("name", "0=a", "0=b", code=2)[1]
    assert ".png" in call("show", "--out", "sheet.txt", code=2)[1]


def test_the_most_alike_classes_are_merged_until_so_many_are_left(model, blocks, context):
    def merge(*arguments, code=0, of=model.id):
        workspace = ("--workspace", str(context.workspace.root), "--model", of)
        result = CliRunner().invoke(app, ["classes", "merge", *arguments, *workspace])
        assert result.exit_code == code, result.output
        return result.stdout.strip(), " ".join(result.stderr.split())

    path, said = merge("--to", "3")
    file = read_model(Artifact(Path(path), read_manifest(Path(path))))[0]
    assert len(file.classes) == 3
    groups = [record["clusters"] for record in classes_record(file)]
    assert sorted(number for group in groups for number in group) == list(range(CLASSES))
    for group in groups:
        if len(group) > 1:
            assert f"{', '.join(f'class {number}' for number in group)}: one class" in said
    before, after = segment(model, blocks, context), segment(context.workspace.get(path), blocks, context)
    ids = np.array([entry.id for entry in file.entries_of_outputs])
    np.testing.assert_array_equal(ids[label_maps(before)], label_maps(after))
    assert "has 5 classes" in merge("--to", "5", code=2)[1]
    single = merge("0,1,2,3,4")[0]
    assert "has one class: there is nothing to merge" in merge("--to", "1", code=2, of=single)[1]
    assert "or --to with the number" in merge(code=2)[1]
    assert "or --to with the number" in merge("0,1", "--to", "3", code=2)[1]


def test_a_model_of_a_file_has_no_images_to_compare_classes_by(model, context, tmp_path):
    file = export(ExportConfig(out=tmp_path / "model.safetensors"), model.id, context)
    workspace = ("--workspace", str(context.workspace.root))
    result = CliRunner().invoke(app, ["classes", "merge", "--to", "2", "--model", str(file), *workspace])
    assert result.exit_code == 2
    assert "came from a file, without the features" in " ".join(result.stderr.split())


def test_a_list_shows_the_backbone_behind_each_artifact(model, blocks, context):
    """Of artifacts whose own options name none: a model, one with other names, and predictions."""
    named = classes(of(model, names={"0": "sky"}), context)
    predictions = segment(named, blocks, context)
    workspace = ["--workspace", str(context.workspace.root)]
    for kind, ids in (("model", (model.id, named.id)), ("predictions", (predictions.id,))):
        result = CliRunner().invoke(app, ["list", kind, *workspace])
        rows = {line.split()[1]: line.split()[2] for line in result.stdout.splitlines()[1:]}
        assert rows == dict.fromkeys(ids, "untrained")
