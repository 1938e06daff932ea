"""`eval-masks`, and `eval --naming`: objects from labels or COCO files, scores, and names of clusters."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unsupseg_cli import (
    EvalConfig,
    EvalMasksConfig,
    ExtractConfig,
    ImportMasksConfig,
    PredictConfig,
    PseudolabelConfig,
    TrainConfig,
    eval_masks,
    evaluate,
    extract,
    import_masks,
    predict,
    pseudolabel,
    train,
)
from unsupseg_cli.cli.main import app
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.methods.maskdistill.config import TrainOptions
from unsupseg_cli.pipeline.export_masks import export_masks
from unsupseg_cli.pipeline.options import ExportMasksConfig

NAMES = ["ground", "cat", "dog"]
SIZE = (32, 48)


def shown(*boxes):
    """A label map of boxes (class, top, bottom, left, right)."""
    labels = np.zeros(SIZE, np.uint8)
    for group, top, bottom, left, right in boxes:
        labels[top:bottom, left:right] = group
    return labels


TRUTH = {
    "a.png": shown((1, 0, 16, 0, 24), (2, 20, 30, 30, 40)),
    "b.png": shown((2, 0, 10, 0, 10), (2, 20, 30, 20, 30)),
    "c.png": shown(),
}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    """Labelled pictures in the colours of their classes."""
    folder = tmp_path / "photos"
    colors = np.array([[40, 90, 220], [60, 160, 60], [220, 60, 40]], np.uint8)
    for name, labels in TRUTH.items():
        save(folder / "images" / name, colors[labels])
        save(folder / "labels" / name, labels)
    (folder / "classes.json").write_text(json.dumps({"classes": NAMES, "void": [255]}))
    return folder


def brought(tmp_path, photos, context, maps):
    """Masks of the regions of label maps, whose values are clusters."""
    folder = tmp_path / f"maps{len(list(tmp_path.iterdir()))}"
    for name, values in maps.items():
        save(folder / name, values)
    config = ImportMasksConfig(masks_from=folder, dataset=f"{photos}/", values="classes")
    return import_masks(config, context)


def scored(context, masks, **options):
    return eval_masks(EvalMasksConfig(masks=masks.id, **options), context)


def test_masks_that_are_the_objects_are_perfect_and_their_clusters_named(tmp_path, photos, context):
    """Clusters are the other way round, so that names are not numbers."""
    maps = {name: np.array([0, 2, 1], np.uint8)[labels] for name, labels in TRUTH.items()}
    made = scored(context, brought(tmp_path, photos, context, maps))
    summary = made.manifest.summary
    assert (summary["images"], summary["objects"], summary["masks"]) == (3, 4, 4)
    assert summary["by_class"]["ap50"] == pytest.approx(1)
    assert summary["by_class"]["ap50_of_class"] == [None, pytest.approx(1), pytest.approx(1)]
    assert summary["assignment"] == [2, 1]
    assert summary["ap50"] == pytest.approx(1)
    assert not made.manifest.used_labels


def test_a_coco_file_tells_the_objects_with_crowds_and_images_that_it_lists(tmp_path, photos, context):
    regions = import_masks(
        ImportMasksConfig(
            masks_from=photos / "labels", dataset=f"{photos}/", values="classes", from_labels=True
        ),
        context,
    )
    path = export_masks(ExportMasksConfig(out=tmp_path / "truth.json"), regions.id, context)
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    content["annotations"][1]["iscrowd"] = 1  # the dog of a.png
    content["images"] = [*content["images"][:2], {"id": 9, "file_name": "elsewhere.png"}]
    path.write_text(json.dumps(content))
    maps = {name: np.array([0, 2, 1], np.uint8)[labels] for name, labels in TRUTH.items()}
    made = scored(context, brought(tmp_path, photos, context, maps), truth=path)
    summary = made.manifest.summary
    assert summary["class_names"] == ["cat", "dog"]
    assert (summary["images"], summary["objects"]) == (2, 3)
    assert summary["by_class"]["ap50"] == pytest.approx(1)
    assert any("elsewhere" in text or "does not have" in text for text in made.manifest.warnings)
    assert "left out: 1 image without a label, or not in the file of objects" in made.manifest.warnings
    with pytest.raises(UsageError, match="--min-share has no effect"):
        scored(context, regions, truth=path, min_share=0.5)


def test_objects_without_a_class_count_of_any_class_alone(tmp_path, photos, context):
    masks = brought(tmp_path, photos, context, TRUTH)
    path = export_masks(ExportMasksConfig(out=tmp_path / "truth.json"), masks.id, context)
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        del entry["category_id"]
    del content["categories"]
    path.write_text(json.dumps(content))
    made = scored(context, masks, truth=path)
    assert made.manifest.summary["ap50"] == pytest.approx(1)
    assert "by_class" not in made.manifest.summary
    assert any(text.startswith("4 of 4 objects have no class") for text in made.manifest.warnings)


def test_what_counts_as_an_object_is_an_option(tmp_path, photos, context):
    masks = brought(tmp_path, photos, context, TRUTH)
    counts = {
        (background, least): scored(context, masks, background=background, min_share=least).manifest.summary[
            "objects"
        ]
        for background in ("0", "none", "0,2")
        for least in (0.01, 0.1)
    }
    assert list(counts.values()) == [4, 1, 7, 4, 1, 1]
    with pytest.raises(UnsupsegError, match="nothing to score"):
        scored(context, masks, background="0,1,2")


def test_masks_without_classes_are_scored_without_and_name_nothing(tmp_path, photos, context):
    config = ImportMasksConfig(masks_from=photos / "labels", dataset=f"{photos}/", from_labels=True)
    made = scored(context, import_masks(config, context))
    assert "by_class" not in made.manifest.summary
    assert made.manifest.used_labels
    with pytest.raises(UsageError, match="names no classes"):
        scored(context, brought(tmp_path, photos, context, TRUTH), naming=made.id)


def test_without_labels_both_ways_to_give_objects_are_named(tmp_path, photos, context):
    (photos / "classes.json").unlink()
    masks = brought(tmp_path, photos, context, TRUTH)
    with pytest.raises(UsageError, match=r"--truth .* or --labels"):
        scored(context, masks)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    made = scored(context, masks, labels=photos / "labels", class_file=tmp_path / "names.txt")
    assert made.manifest.summary["objects"] == 4


def test_names_by_objects_and_by_pixels_may_differ(tmp_path, photos, context):
    """Cluster 1 covers one large cat and two small dogs: by pixels it is the cat, by objects the dog."""
    objects = {name: np.minimum(labels, 1) for name, labels in TRUTH.items()}
    objects["b.png"][20:30, 20:30] = 0
    masks = brought(tmp_path, photos, context, objects)
    # imported classes count from 0; those of a labeller with a background from 1
    coco = export_masks(ExportMasksConfig(out=tmp_path / "one.json"), masks.id, context)
    content = json.loads(coco.read_text())
    content["categories"] = [{"id": 0, "name": "no object"}, {"id": 1, "name": "thing"}]
    for entry in content["annotations"]:
        entry["category_id"] = 1
    coco.write_text(json.dumps(content))
    masks = import_masks(ImportMasksConfig(masks_from=coco, dataset=f"{photos}/"), context)
    naming = scored(context, masks)
    assert json.loads((naming.path / "naming.json").read_text()) == ["ground", "dog"]

    extract(ExtractConfig(dataset=f"{photos}/", size=32, backbone="untrained", workers=0), context)
    options = TrainOptions(epochs=60, hard_share=1.0, lr=0.01)
    config = TrainConfig(method="maskdistill", masks=masks.id, classes=2, device="cpu")
    model = train(config, context, options=options)
    given = {"dataset": f"{photos}/", "device": "cpu", "workers": 0, "sheet": 0}
    usual = evaluate(EvalConfig(model=model.id, **given), context)
    other = evaluate(EvalConfig(model=model.id, naming=naming.id, **given), context)
    assert usual.manifest.summary["assignment"] == [0, 1]
    assert other.manifest.summary["assignment"] == [0, 2]
    assert other.manifest.summary["protocol"]["matching"] == "objects"
    assert other.manifest.used_labels
    assert not usual.manifest.used_labels
    assert other.manifest.summary["hungarian"]["miou"] == usual.manifest.summary["miou"]
    assert other.manifest.summary["miou"] != usual.manifest.summary["miou"]
    predictions = predict(
        PredictConfig(model=model.id, dataset=f"{photos}/", workers=0, device="cpu"), context
    )
    same = evaluate(
        EvalConfig(predictions=predictions.id, naming=naming.id, dataset=f"{photos}/", sheet=0), context
    )
    assert same.manifest.summary["assignment"] == [0, 2]
    with pytest.raises(UsageError, match="--matching has no effect"):
        evaluate(EvalConfig(model=model.id, naming=naming.id, matching="iou", **given), context)
    call = ["eval", "--model", model.id, "--naming", naming.id, "-w", str(context.workspace.root)]
    done = CliRunner().invoke(app, [*call, "--dataset", f"{photos}/", "--workers", "0", "--sheet", "0"])
    assert done.exit_code == 0, done.output
    assert "named by labels of objects" in " ".join(done.output.split())
    assert "matched on these images instead" in " ".join(done.output.split())


def test_names_of_other_classes_are_refused(tmp_path, photos, context):
    naming = scored(context, brought(tmp_path, photos, context, TRUTH))
    (photos / "classes.json").write_text(json.dumps({"classes": ["ground", "cat", "wolf"], "void": [255]}))
    with pytest.raises(UsageError, match="do not have: dog"):
        scored(context, brought(tmp_path, photos, context, TRUTH), naming=naming.id)
    fewer = {name: np.minimum(labels, 1).astype(np.uint8) for name, labels in TRUTH.items()}
    (photos / "classes.json").write_text(json.dumps({"classes": NAMES, "void": [255]}))
    with pytest.raises(UsageError, match="names 2 clusters, but there are 1"):
        scored(context, brought(tmp_path, photos, context, fewer), naming=naming.id)


def test_pseudo_labels_of_a_grid_are_scored_at_the_size_of_the_images(photos, context):
    extract(ExtractConfig(dataset=f"{photos}/", size=32, backbone="untrained", workers=0), context)
    labels = pseudolabel(PseudolabelConfig(classes=3, workers=0, device="cpu", sheet=0), context)
    made = eval_masks(EvalMasksConfig(), context)
    assert made.input("pseudolabels").id == labels.id
    assert len(made.manifest.summary["assignment"]) == 3
    done = CliRunner().invoke(app, ["eval-masks", "-w", str(context.workspace.root)])
    assert "of any class" in done.output
