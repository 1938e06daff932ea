"""`export-masks`: what it writes is what was there, for `import-masks` and for COCO's own tools."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage
from typer.testing import CliRunner

from unsupseg_cli import (
    ExtractConfig,
    ImportMasksConfig,
    PseudolabelConfig,
    extract,
    import_masks,
    pseudolabel,
)
from unsupseg_cli.cli.main import app
from unsupseg_cli.contents.masks import MaskReader
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.data.coco import decode, encode
from unsupseg_cli.pipeline.export_masks import export_masks
from unsupseg_cli.pipeline.options import ExportMasksConfig

from fixtures.pictures import noise, rle  # isort: skip

SIZES = {"a.png": (32, 48), "b.png": (40, 30), "deep/c.png": (33, 47)}


@pytest.fixture
def photos(tmp_path):
    return noise(tmp_path / "photos", SIZES)


def ring(size, thick=6):
    """A mask with a hole, and in it a part that touches the ring at no edge."""
    y, x = np.indices(size)
    far = np.maximum(abs(y - size[0] // 2), abs(x - size[1] // 2))
    return ((far < 14) & (far >= 14 - thick)) | (far < 4)


def blobs(size, seed):
    values = ndimage.gaussian_filter(np.random.default_rng(seed).random(size), 2)
    return values > np.quantile(values, 0.6)


def brought(tmp_path, photos, context, categories=("tree", "roof"), **options):
    """Masks that overlap, with holes and several parts; b.png has none."""
    a, c = SIZES["a.png"], SIZES["deep/c.png"]
    masks = [(1, ring(a), 1, 0.75), (1, blobs(a, 0), 0, 0.5), (3, blobs(c, 1), 1, 0.1)]
    content = {
        "images": [{"id": i + 1, "file_name": name} for i, name in enumerate(SIZES)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories)],
        "annotations": [
            {"image_id": image, "segmentation": rle(mask), "score": score}
            | ({"category_id": group} if categories else {})
            for image, mask, group, score in masks
        ],
    }
    path = tmp_path / "brought.json"
    path.write_text(json.dumps(content))
    config = ImportMasksConfig(masks_from=path, dataset=f"{photos}/", **options)
    return import_masks(config, context)


def written(out, masks, context, **options):
    return json.loads(export_masks(ExportMasksConfig(out=out, **options), masks.id, context).read_text())


def columns(artifact):
    return {
        name: values
        for name, values in pq.read_table(artifact.path / "masks.parquet").to_pydict().items()
        if name != "source"
    }


@pytest.mark.parametrize("form", ["rle", "polygon"])
@pytest.mark.parametrize("categories", [("tree", "roof"), ()])
def test_what_comes_back_is_what_went_out(tmp_path, photos, context, form, categories):
    first = brought(tmp_path, photos, context, categories)
    out = tmp_path / "out.json"
    written(out, first, context, format=form)
    second = import_masks(ImportMasksConfig(masks_from=out, dataset=f"{photos}/"), context)
    assert second.manifest.key != first.manifest.key
    assert columns(second) == columns(first)
    assert second.manifest.summary["class_names"] == list(categories)
    before, after = MaskReader(first, context), MaskReader(second, context)
    for view in range(3):
        np.testing.assert_array_equal(before.masks(view), after.masks(view))


@pytest.mark.parametrize("seed", range(20))
def test_polygons_give_back_every_pixel(seed):
    size = tuple(np.random.default_rng(seed).integers(1, 60, 2).tolist())
    mask = blobs(size, seed)
    mask[-1, -1] = True
    np.testing.assert_array_equal(decode(encode(mask, "polygon"), *size), mask)


def test_a_hole_is_cut_out_and_parts_are_polygons():
    mask = ring((40, 40))
    polygons = encode(mask, "polygon")
    assert [len(polygon) for polygon in sorted(polygons, key=len)] == [
        8,
        20,
    ]  # a square; two and twice the bridge
    np.testing.assert_array_equal(decode(polygons, 40, 40), mask)


@pytest.mark.parametrize("form", ["rle", "polygon"])
def test_cocos_own_reader_finds_masks_boxes_and_areas(tmp_path, photos, context, form):
    out = tmp_path / "out.json"
    written(out, brought(tmp_path, photos, context), context, format=form)
    truth = COCO(str(out))
    assert [image["file_name"] for image in truth.loadImgs(truth.getImgIds())] == list(SIZES)
    assert [category["name"] for category in truth.loadCats(truth.getCatIds())] == ["tree", "roof"]
    one = truth.loadAnns(truth.getAnnIds(imgIds=1))[0]
    np.testing.assert_array_equal(truth.annToMask(one), ring(SIZES["a.png"]))
    assert one["bbox"] == [11, 3, 27, 27]
    assert one["area"] == ring(SIZES["a.png"]).sum()
    assert (one["category_id"], one["score"]) == (1, 0.75)


def test_masks_of_a_grid_of_crops_lie_where_the_crops_show_them(tmp_path, photos, context):
    (photos / "b.png").unlink()
    (photos / "deep" / "c.png").unlink()
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32, 32:] = 255  # the upper right crop is white
    Image.fromarray(image).save(photos / "a.png")
    config = ExtractConfig(
        dataset=f"{photos}/", geometry="ten-crop", size=32, backbone="untrained", workers=0
    )
    extract(config, context)
    labels = pseudolabel(PseudolabelConfig(classes=2, workers=0, device="cpu"), context)
    said = []
    context.reporter.warn = said.append
    content = written(tmp_path / "out.json", labels, context)
    assert said == ["left out: 5 mirrored views"]
    reader = MaskReader(labels, context)
    assert len(content["images"]) == 1
    assert len(content["annotations"]) == sum(reader.count(view) for view in range(5))
    covered = sum(decode(one["segmentation"], 64, 64).astype(int) for one in content["annotations"])
    assert covered.min() == 1
    assert (covered[16:48, 16:48] == 2).all()  # the crop of the middle overlaps the others
    assert {category["name"] for category in content["categories"]} == {"0", "1"}


def test_masks_made_with_labels_stay_known_as_such(tmp_path, photos, context):
    out = tmp_path / "out.json"
    written(out, brought(tmp_path, photos, context, from_labels=True), context)
    with pytest.raises(UsageError, match="--from-labels"):
        import_masks(ImportMasksConfig(masks_from=out, dataset=f"{photos}/"), context)
    again = ImportMasksConfig(masks_from=out, dataset=f"{photos}/", from_labels=True)
    assert import_masks(again, context).manifest.used_labels


def test_what_cannot_be_written_is_said(tmp_path, photos, context):
    masks = brought(tmp_path, photos, context)
    out = tmp_path / "out.json"
    with pytest.raises(UsageError, match="pseudolabel` first"):
        export_masks(ExportMasksConfig(out=out), None, context)
    written(out, masks, context)
    with pytest.raises(UsageError, match="--force"):
        written(out, masks, context)
    features = extract(ExtractConfig(dataset=f"{photos}/", size=32, backbone="untrained", workers=0), context)
    with pytest.raises(UsageError, match="which has no masks"):
        written(tmp_path / "other.json", features, context)
    (photos / "a.png").write_bytes((photos / "b.png").read_bytes())
    with pytest.raises(UnsupsegError, match="are not those of the masks"):
        written(tmp_path / "other.json", masks, context)
    assert not (tmp_path / "other.json").exists()


def test_the_command_prints_the_file(tmp_path, photos, context):
    masks = brought(tmp_path, photos, context)
    out = tmp_path / "new" / "out.json"
    call = ["export-masks", masks.id, "--out", out, "--format", "polygon", "-w", context.workspace.root]
    done = CliRunner().invoke(app, [str(word) for word in call])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    assert len(json.loads(out.read_text())["annotations"]) == 3
    refused = CliRunner().invoke(app, ["export-masks", masks.id, "--out", "masks.txt"])
    assert refused.exit_code == 2
    assert "ends in .json" in refused.output
