"""`export-labels` read back by the programs that the formats are of (extra `interop`: they pin much)."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from unsupseg_cli import Context
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.pipeline.export_labels import export_labels
from unsupseg_cli.pipeline.options import ExportLabelsConfig

from fixtures.labelled import predictions_of  # isort: skip

NAMES = ["sky", 'road "wet"', "<b>roof</b>"]
REASON = "pip install 'unsupseg[interop]'"


@pytest.fixture
def labels():
    values = np.zeros((24, 32), np.int16)
    values[12:], values[2:6, 3:9], values[20:, 28:] = 1, 2, -1
    return {"a.png": values, "deep/c d.jpg": np.full((17, 13), 2, np.int16)}


@pytest.fixture(params=[(0, 1, 2), (0, 3, 4)], ids=["unmerged", "merged"])
def export(request, labels, tmp_path):
    context = Context(Workspace(tmp_path / "work"))
    predictions = predictions_of(labels, NAMES, context, tmp_path / "photos", ids=request.param)
    return lambda name, out, **options: export_labels(
        ExportLabelsConfig(format=name, out=tmp_path / out, **options), predictions.id, context
    )


@pytest.mark.parametrize(
    ("name", "out", "format"),
    [
        ("voc", "voc", "voc_segmentation"),
        ("cvat", "cvat.zip", "voc_segmentation"),
        ("coco-panoptic", "coco", "coco_panoptic"),
    ],
)
def test_datumaro_reads_the_label_maps(export, labels, name, out, format):
    datumaro = pytest.importorskip("datumaro", reason=REASON)
    path = export(
        name, out, **({"bring_images": "copy"} if name == "coco-panoptic" else {})
    )  # it follows no links
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(path.with_suffix(""))
        path = path.with_suffix("")
    read = datumaro.Dataset.import_from(str(path), format)
    names = [one.name for one in read.categories()[datumaro.AnnotationType.label].items]
    found = {}
    for item in read:
        values = np.full(labels["a.png" if item.id == "a" else "deep/c d.jpg"].shape, -1)
        for one in item.annotations:
            if names[one.label] in NAMES:
                values[one.image.astype(bool)] = NAMES.index(names[one.label])
        found[item.id] = values
    for key, values in labels.items():
        np.testing.assert_array_equal(found[key.rpartition(".")[0]], values)


def test_label_studio_takes_the_tasks(export, labels):
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason=REASON)
    from label_studio_sdk.label_interface import LabelInterface

    out = export("label-studio", "tasks")
    interface = LabelInterface((out / "labels.xml").read_text())
    for task, values in zip(json.loads((out / "tasks.json").read_text()), labels.values(), strict=True):
        (prediction,) = task["predictions"]
        assert interface.validate_prediction(prediction, return_errors=True) == []
        found = np.full(values.shape, -1)
        for one in prediction["result"]:
            mask = brush.decode_rle(one["value"]["rle"]).reshape(*values.shape, 4)[..., 3] == 255
            found[mask] = NAMES.index(one["value"]["brushlabels"][0])
        np.testing.assert_array_equal(found, values)


def test_supervision_reads_the_polygons(labels, tmp_path):
    supervision = pytest.importorskip("supervision", reason=REASON)
    context = Context(Workspace(tmp_path / "work"))
    large = {"a.png": labels["a.png"].repeat(10, 0).repeat(10, 1), "b.jpg": np.full((50, 70), 2, np.int16)}
    predictions = predictions_of(large, NAMES, context, tmp_path / "photos")
    out = export_labels(ExportLabelsConfig(format="yolo-seg", out=tmp_path / "yolo"), predictions.id, context)
    read = supervision.DetectionDataset.from_yolo(
        str(out / "images" / "train"), str(out / "labels" / "train"), str(out / "data.yaml"), force_masks=True
    )
    assert read.classes == NAMES
    assert len(read) == len(large)
    for path, _, found in read:
        values = large[Path(path).name]
        for group in np.unique(values[values >= 0]):
            mask, drawn = values == group, found.mask[found.class_id == group].any(0)
            assert drawn[mask].all()  # which fills the pixels under an outline too
            assert drawn.sum() < 1.05 * mask.sum()
        assert set(found.class_id) == set(values[values >= 0])
