"""`import-masks`: what users bring, what is refused, and what methods and readers make of it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unsupseg_cli import (
    Context,
    ExtractConfig,
    ImportMasksConfig,
    PseudolabelConfig,
    TrainConfig,
    extract,
    import_masks,
    pseudolabel,
    train,
)
from unsupseg_cli.artifacts.arrays import RaggedWriter, write_array
from unsupseg_cli.artifacts.grids import GridWriter
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.masks import LabelMaps, MaskReader, SoftMasks, read_imported, read_masks
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.methods.primaps.config import TrainOptions as PrimapsTrain

from fixtures.pictures import noise, rle, save  # isort: skip

SIZES = {"a.png": (32, 48), "b.png": (40, 32), "deep/c.png": (32, 48)}


@pytest.fixture
def photos(tmp_path):
    return noise(tmp_path / "photos", SIZES)


def label_maps(folder, dtype=np.uint8):
    """Write a map of two values for each photo."""
    for name, size in SIZES.items():
        values = np.zeros(size, dtype)
        values[4:20, 2:13], values[22:30, 20:31] = 3, 7
        save((folder / name).with_suffix(".png"), values)
    return folder


def rectangle(size, top, bottom, left, right):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def coco_file(path, **changes):
    """Write a COCO file with two masks of a.png that overlap, and one of deep/c.png."""
    a, c = SIZES["a.png"], SIZES["deep/c.png"]
    content = {
        "images": [
            {"id": 10, "file_name": "a.png", "height": a[0], "width": a[1]},
            {"id": 11, "file_name": "c.png", "height": c[0], "width": c[1]},
        ],
        "categories": [{"id": 5, "name": "roof"}, {"id": 2, "name": "tree"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 5, "segmentation": rle(rectangle(a, 0, 20, 0, 20))},
            {
                "id": 2,
                "image_id": 10,
                "category_id": 2,
                "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]],
                "score": 0.5,
            },
            {"id": 3, "image_id": 11, "category_id": 2, "segmentation": rle(rectangle(c, 5, 9, 7, 11))},
        ],
    }
    path.write_text(json.dumps({**content, **changes}))
    return path


def bring(path, photos, context, **options):
    return import_masks(ImportMasksConfig(masks_from=path, dataset=f"{photos}/", **options), context)


def table(artifact):
    return pq.read_table(artifact.path / "masks.parquet").to_pydict()


# What comes in -------------------------------------------------------------------------------------------------


def test_masks_that_overlap_are_kept_whole_with_classes_scores_and_boxes(tmp_path, photos, context):
    made = bring(coco_file(tmp_path / "coco.json"), photos, context)
    reader = MaskReader(made, context)
    assert reader.views["key"] == list(SIZES)
    first, second = reader.masks(0)
    np.testing.assert_array_equal(first, rectangle((32, 48), 0, 20, 0, 20))
    np.testing.assert_array_equal(second, rectangle((32, 48), 10, 30, 10, 30))
    np.testing.assert_array_equal(reader.boxes(0), [[0, 0, 20, 20], [10, 10, 30, 30]])
    assert reader.boxes(1).shape == (0, 4)
    np.testing.assert_array_equal(reader.boxes(2), [[7, 5, 11, 9]])
    assert (reader.label_map(0) == 0).sum() == 400  # of higher score, so that all of it is seen
    assert (reader.label_map(0) == 1).sum() == 300
    rows = reader.rows(0)
    assert (rows.id.tolist(), rows.area.tolist(), rows.score.tolist()) == ([0, 1], [400, 400], [1.0, 0.5])
    assert rows.group.tolist() == [1, 0]
    summary = made.manifest.summary
    assert summary["class_names"] == ["tree", "roof"]
    assert (summary["masks"], summary["overlapping"], summary["empty"]) == (3, 1, ["b.png"])
    assert "no mask was found in 1 view (b.png)" in made.manifest.warnings
    assert table(made)["source"] == ["annotation 1", "annotation 2", "annotation 3"]
    assert (made.path / "sheet.png").exists()
    assert not made.manifest.used_labels


def test_the_same_masks_have_the_same_bytes_whatever_form_they_came_in(tmp_path, photos, context):
    images = [{"id": name, "file_name": name, "height": h, "width": w} for name, (h, w) in SIZES.items()]
    boxes = ((4, 20, 2, 13), (22, 30, 20, 31))
    forms = {
        "rle": lambda size, box: rle(rectangle(size, *box)),
        "polygon": lambda _, box: [[box[2], box[0], box[3], box[0], box[3], box[1], box[2], box[1]]],
    }
    made = [bring(label_maps(tmp_path / "maps"), photos, context)]
    for form, segment in forms.items():
        entries = [
            {"image_id": name, "segmentation": segment(size, box)}
            for name, size in SIZES.items()
            for box in boxes
        ]
        path = coco_file(tmp_path / f"{form}.json", images=images, annotations=entries, categories=[])
        made.append(bring(path, photos, context))
    stored = [
        {
            name: output.sha256
            for name, output in artifact.manifest.outputs.items()
            if name.startswith("labels")
        }
        for artifact in made
    ]
    assert stored[0] == stored[1] == stored[2]
    assert len({artifact.manifest.key for artifact in made}) == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_each_value_of_a_label_map_is_a_mask_or_a_class_of_regions(tmp_path, photos, context, dtype):
    folder = label_maps(tmp_path / "maps")
    values = np.zeros(SIZES["a.png"], dtype)
    values[0:4, 0:4], values[20:24, 20:24], values[24, 24] = 7, 7, 7  # the last touches at a corner
    values[10, 10] = 200
    save(folder / "a.png", values)
    masks = MaskReader(bring(folder, photos, context), context)
    assert masks.rows(0).area.tolist() == [33, 1]
    assert masks.rows(0).group.tolist() == [-1, -1]
    made = bring(folder, photos, context, values="classes", min_area=2)
    classes = MaskReader(made, context)
    assert classes.rows(0).area.tolist() == [16, 17]
    assert made.manifest.summary["class_names"] == ["3", "7"]
    assert classes.rows(0).group.tolist() == [1, 1]
    assert "left out: 1 mask of fewer pixels than 2" in made.manifest.warnings
    assert table(made)["source"][:2] == ["value 7", "value 7"]


def test_values_that_are_no_mask_are_said(tmp_path, photos, context):
    folder = label_maps(tmp_path / "maps")
    save(folder / "a.png", np.full(SIZES["a.png"], 255, np.uint8))
    made = bring(folder, photos, context)
    assert any("--background 0,255" in text for text in made.manifest.warnings)
    assert bring(folder, photos, context, background="0,255").manifest.summary["empty"] == ["a.png"]
    whole = bring(folder, photos, context, background="none")
    assert whole.manifest.summary["masks"] == 1 + 3 + 3  # 0 is a mask, too


@pytest.mark.parametrize(("dtype", "void"), [(np.uint16, 65535), (np.int32, -1)])
def test_void_of_wider_maps_is_said_too(tmp_path, photos, context, dtype, void):
    folder = label_maps(tmp_path / "maps")
    Image.fromarray(np.full(SIZES["a.png"], void, dtype)).save(folder / "a.tif")
    (folder / "a.png").unlink()
    made = bring(folder, photos, context)
    assert any(f"{void} in 1 label map; " in text for text in made.manifest.warnings)
    assert any(f"--background 0,{void}" in text for text in made.manifest.warnings)
    assert bring(folder, photos, context, background=f"0,{void}").manifest.summary["empty"] == ["a.png"]


def test_numbers_of_many_masks_are_no_void(tmp_path, photos, context):
    folder = label_maps(tmp_path / "maps")
    values = np.arange(32 * 48).reshape(SIZES["a.png"]) // 5  # 0 to 307, of five pixels each
    Image.fromarray(values.astype(np.uint16)).save(folder / "a.tif")
    (folder / "a.png").unlink()
    assert bring(folder, photos, context).manifest.warnings == []


def test_images_that_a_file_or_folder_does_not_know_are_said(tmp_path, photos, context):
    folder = label_maps(tmp_path / "maps")
    (folder / "b.png").unlink()
    said = "1 image of the data set is not in 'maps', and has no mask (the first: 'b.png')"
    assert said in bring(folder, photos, context).manifest.warnings
    made = bring(coco_file(tmp_path / "coco.json"), photos, context)
    assert said.replace("maps", "coco.json") in made.manifest.warnings


def test_what_a_coco_file_leaves_open_is_said(tmp_path, photos, context):
    file = json.loads(coco_file(tmp_path / "coco.json").read_text())
    first = file["annotations"][0]
    first["id"], again = 7, {**first, "id": 8}
    del file["categories"][1]["name"]
    without = {name: value for name, value in first.items() if name != "category_id"}
    entries = [first, again, *file["annotations"][1:], {**without, "id": 9}]
    path = coco_file(tmp_path / "coco.json", categories=file["categories"], annotations=entries)
    made = bring(path, photos, context)
    assert made.manifest.summary["class_names"] == ["2", "roof"]
    assert "1 category without a name: named by the number" in made.manifest.warnings
    assert "1 mask without a category: without a class" in made.manifest.warnings
    said = "1 mask with the pixels and the class of an earlier one: each is kept"
    assert said in made.manifest.warnings
    path = coco_file(tmp_path / "coco.json", categories=[])
    assert any(
        "classes are named by the numbers" in text for text in bring(path, photos, context).manifest.warnings
    )


def test_results_name_images_by_file_or_by_the_numbers_of_another_file(tmp_path, photos, context):
    named = coco_file(tmp_path / "coco.json")
    segmentation = rle(rectangle(SIZES["a.png"], 0, 3, 0, 3))
    results = tmp_path / "results.json"
    results.write_text(
        json.dumps([{"image_id": 10, "category_id": 5, "segmentation": segmentation, "score": 0.25}])
    )
    with pytest.raises(UsageError, match="--images-file"):
        bring(results, photos, context)
    made = bring(results, photos, context, images_file=named)
    assert table(made)["score"] == [0.25]
    assert made.manifest.summary["class_names"] == ["tree", "roof"]
    with pytest.raises(UsageError, match=r"has images of its own; leave --images-file out"):
        bring(named, photos, context, images_file=named)
    results.write_text(json.dumps([{"image_id": "deep/c.png", "segmentation": segmentation}]))
    made = bring(results, photos, context)
    assert (table(made)["view"], table(made)["class"]) == ([2], [-1])


def test_groups_and_tiny_masks_are_left_out_and_counted(tmp_path, photos, context):
    size = SIZES["a.png"]
    entries = [
        {"image_id": 10, "segmentation": rle(rectangle(size, 0, 9, 0, 9)), "iscrowd": 1},
        {"image_id": 10, "segmentation": rle(rectangle(size, 0, 1, 0, 3))},
        {"image_id": 10, "segmentation": [[4.2, 4.2, 4.3, 4.2, 4.3, 4.3]]},  # covers no pixel
    ]
    path = coco_file(tmp_path / "coco.json", annotations=entries)
    made = bring(path, photos, context)
    assert made.manifest.summary["masks"] == 1
    assert "left out: 1 mask marked iscrowd (groups; --crowd takes them)" in made.manifest.warnings
    assert "left out: 1 mask of fewer pixels than 1" in made.manifest.warnings
    assert bring(path, photos, context, crowd=True).manifest.summary["masks"] == 2
    assert bring(path, photos, context, min_area=4).manifest.summary["masks"] == 0


def test_a_folder_of_the_splits_name_is_taken_and_unreadable_images_have_no_view(tmp_path, photos, context):
    (photos / "broken.png").write_bytes(b"nothing")
    made = bring(label_maps(tmp_path / "maps" / "all").parent, photos, context)
    assert list(made.manifest.summary["skipped"]) == ["broken.png"]
    assert made.manifest.summary["views"] == 3
    assert any("1 image is unreadable" in text for text in made.manifest.warnings)
    with pytest.raises(UnsupsegError, match="--strict"):
        bring(tmp_path / "maps", photos, context, strict=True)


# What is refused -----------------------------------------------------------------------------------------------


def entry(**changes):
    whole = {"id": 4, "image_id": 10, "segmentation": rle(rectangle(SIZES["a.png"], 0, 2, 0, 2))}
    return {**whole, **changes}


IMAGE = {"id": 10, "file_name": "a.png", "height": 32, "width": 48}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"images": [IMAGE, {"id": 11, "file_name": "x.png"}]},
            r"image 11: the data set has no image 'x.png'",
        ),
        (
            {"images": [{**IMAGE, "id": 1.0}]},
            r"image number 0: its id is 1.0, expected a whole number or a text",
        ),
        (
            {"categories": [{"id": 1, "name": "\ud800"}]},
            r"category number 0: its name is '.ud800', expected a text",
        ),
        ({"categories": [{"id": 1, "name": None}]}, r"category number 0: its name is None, expected a text"),
        ({"categories": [{"id": 1, "name": " "}]}, r"category number 0: its name is ' ', expected a text"),
        (
            {"annotations": [entry(id="\ud800")]},
            r"annotation number 0: its id is '.ud800', expected a whole number",
        ),
        ({"annotations": [entry(image_id="10")]}, r"its image '10' is not among the images; 10 is"),
        ({"images": [{**IMAGE, "height": 33}]}, r"image 10: 'a.png' is 48x33 pixels there and 48x32 here"),
        (
            {"images": [{**IMAGE, "height": 33, "width": None}]},
            r"'a.png' is \?x33 pixels there and 48x32 here",
        ),
        ({"images": [IMAGE, {**IMAGE, "id": 11}]}, r"image 11: both 'a.png' and 'a.png' are 'a.png'"),
        ({"images": [IMAGE, IMAGE]}, r"image number 1 \('a.png'\): its id 10 is that of 'a.png'"),
        ({"annotations": [entry(), entry()]}, r"annotation 4: its id 4 is that of annotation number 0"),
        ({"annotations": [entry(image_id=99)]}, r"annotation 4: its image 99 is not among the images"),
        ({"annotations": [entry(score=float("nan"))]}, r"annotation 4: its score is nan"),
        ({"annotations": [entry(category_id=77)]}, r"annotation 4: its category 77 is not among"),
        ({"annotations": [entry(segmentation=[[0, 0, 5, 5]])]}, r"annotation 4 \('a.png'\): a polygon has 4"),
        (
            {"annotations": [entry(segmentation=[[0, 0, 99, 0, 9, 9]])]},
            r"a.png'\): .*out of its image of 48x32",
        ),
        (
            {"annotations": [entry(segmentation={"size": [32, 48], "counts": "~~"})]},
            r"run lengths are broken",
        ),
        (
            {"annotations": [entry(segmentation={"size": [48, 32], "counts": [1536]})]},
            r"its image is \[32, 48\]",
        ),
        ({"annotations": [entry(id=n, score="high") for n in range(9)]}, r"in 9 places, .*; and 4 more\."),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, photos, context, changes, said):
    path = coco_file(tmp_path / "coco.json", **{"images": [IMAGE], "annotations": [], **changes})
    with pytest.raises(UsageError, match=said) as error:
        bring(path, photos, context)
    assert str(path) in str(error.value)
    assert "nothing was written" in str(error.value)
    assert not (context.workspace.root / "masks").exists()


def test_a_bad_file_leaves_the_masks_that_are_there(tmp_path, photos, context):
    path = coco_file(tmp_path / "coco.json")
    made = bring(path, photos, context)
    before = sorted((context.workspace.root / "masks").rglob("*"))
    coco_file(path, annotations=[entry(score="high")])
    with pytest.raises(UsageError, match="its score is 'high'"):
        bring(path, photos, Context(context.workspace, force=True))
    assert sorted((context.workspace.root / "masks").rglob("*")) == before
    assert context.workspace.verify(made) == []


@pytest.mark.parametrize(
    ("name", "pixels", "said"),
    [
        ("a.png", np.zeros((33, 48), np.uint8), r"a.png' is 48x33 pixels, its image 'a.png' is 48x32"),
        ("a.png", np.zeros((32, 48, 3), np.uint8), r"a picture of 3 channels; expected one"),
        (
            "x.png",
            np.zeros((32, 48), np.uint8),
            r"'x.png': the data set has no image 'x.png'.*--skip-unknown",
        ),
        ("a.tif", np.zeros((32, 48), np.uint8), r"both '.*a.png' and '.*a.tif' are of 'a.png'"),
    ],
)
def test_label_maps_that_do_not_fit_are_named_and_nothing_is_written(
    tmp_path, photos, context, name, pixels, said
):
    folder = label_maps(tmp_path / "maps")
    save(folder / name, pixels)
    with pytest.raises(UsageError, match=said):
        bring(folder, photos, context)
    assert not (context.workspace.root / "masks").exists()
    (folder / "b.png").write_bytes(b"broken")
    with pytest.raises(UsageError, match=r"in 2 places.*b.png' cannot be read"):
        bring(folder, photos, context)


def test_an_image_without_a_file_name_is_named(tmp_path, photos, context):
    path = coco_file(tmp_path / "coco.json", images=[{"id": 10, "file_name": None}])
    with pytest.raises(UsageError, match="image number 0: its file_name is None, expected a text"):
        bring(path, photos, context)


@pytest.mark.parametrize(("name", "said"), [("x.png", "has no image 'x.png'"), ("a.tif", "are of 'a.png'")])
def test_maps_without_an_image_of_their_own_are_refused_where_the_masks_of_the_others_are_there(
    tmp_path, photos, context, name, said
):
    folder = label_maps(tmp_path / "maps")
    bring(folder, photos, context)
    save(folder / name, np.zeros((32, 48), np.uint8))
    with pytest.raises(UsageError, match=said):
        bring(folder, photos, context)


def test_names_that_mean_several_images_are_refused_with_both(tmp_path, photos, context):
    save(photos / "other" / "c.png", np.zeros((32, 48, 3), np.uint8))
    path = coco_file(tmp_path / "coco.json")
    with pytest.raises(UsageError, match=r"image 11: 'c.png' may be 'deep/c.png' or 'other/c.png'"):
        bring(path, photos, context)
    content = json.loads(path.read_text())
    content["images"][1]["file_name"] = "/somewhere/else/deep/c.png"
    path.write_text(json.dumps(content))
    assert table(bring(path, photos, context))["view"] == [0, 0, 2]


def test_masks_of_other_images_are_left_out_when_asked(tmp_path, photos, context):
    (photos / "a.png").unlink()
    path = coco_file(tmp_path / "coco.json")
    with pytest.raises(UsageError, match=r"no image 'a.png'\. \(--skip-unknown"):
        bring(path, photos, context)
    made = bring(path, photos, context, skip_unknown=True)
    assert made.manifest.summary["masks"] == 1
    assert "left out: 1 image that the data set does not have" in made.manifest.warnings


@pytest.mark.parametrize("skip", [True, False])
def test_a_file_of_masks_of_another_data_set_or_of_none_is_refused(tmp_path, photos, context, skip):
    path = coco_file(tmp_path / "coco.json", images=[{**IMAGE, "file_name": "x.png"}], annotations=[])
    with pytest.raises(UsageError, match=r"No image .* among the 1 .* 'a.png', .* 'x.png'|no image 'x.png'"):
        bring(path, photos, context, skip_unknown=skip)
    coco_file(path, annotations=[])
    with pytest.raises(UsageError, match="holds no mask: its list of annotations or results is empty"):
        bring(path, photos, context, skip_unknown=skip)
    path.write_text("[]")
    with pytest.raises(UsageError, match="holds no mask"):
        bring(path, photos, context, skip_unknown=skip)
    assert not (context.workspace.root / "masks").exists()


@pytest.mark.parametrize("name", ["none", "none.json", "photos/a.png"])
def test_what_is_neither_file_nor_folder_is_refused(tmp_path, photos, context, name):
    with pytest.raises(UsageError, match=rf"'.*{name}' (does not exist|is no COCO file)"):
        bring(tmp_path / name, photos, context)


def test_a_folder_without_any_map_of_an_image_is_refused(tmp_path, photos, context):
    save(tmp_path / "maps" / "x.png", np.zeros((32, 48), np.uint8))
    for skip in (True, False):
        with pytest.raises(UsageError, match=r"the first image is 'a.png', the first map 'x.png'"):
            bring(tmp_path / "maps", photos, context, skip_unknown=skip)


def test_labels_of_the_data_set_must_be_declared_and_are_carried_on(tmp_path, context):
    folder = tmp_path / "set"
    for name, size in SIZES.items():
        save(folder / "images" / name, np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8))
    label_maps(folder / "labels")
    (folder / "classes.json").write_text('{"classes": [{"name": "a", "id": 3}, {"name": "b", "id": 7}]}')
    with pytest.raises(UsageError, match=r"is a label of the data set.*--from-labels"):
        bring(folder / "labels", folder, context)
    made = bring(folder / "labels", folder, context, from_labels=True)
    assert made.manifest.used_labels
    extract(ExtractConfig(dataset=f"{folder}/", size=32, backbone="untrained", workers=0), context)
    config = TrainConfig(method="primaps", masks=made.id, classes=2, device="cpu", workers=0)
    assert train(config, context, options=PrimapsTrain(epochs=1)).manifest.used_labels


# What is made of it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", ["native", "squash", "five-crop"])
def test_primaps_trains_on_them_whatever_the_views_of_the_features_show(tmp_path, photos, context, geometry):
    made = bring(coco_file(tmp_path / "coco.json"), photos, context)
    config = ExtractConfig(
        dataset=f"{photos}/", size=32, geometry=geometry, backbone="untrained", workers=0, device="cpu"
    )
    features = FeatureSet(extract(config, context))
    told = []
    reporter = Silent()
    reporter.info = told.append
    masks = read_imported(made, features, Context(context.workspace, reporter))
    assert any("overlap in 1 image" in text for text in told)
    assert len(masks.labels) == len(features)
    for view in range(len(features)):
        assert masks.labels[view].shape == tuple(features.sizes[view])
        assert masks.masks(view).shape == (len(masks.groups[view]), *features.sizes[view])
    if geometry != "five-crop":
        height, width = features.sizes[0]
        left, top, right, bottom = np.array([10, 10, 30, 30]) * ([width / 48, height / 32] * 2)
        rows, columns = np.nonzero(masks.masks(0)[1])
        assert np.abs(np.array([columns.min(), rows.min()]) - [left, top]).max() <= 1
        assert np.abs(np.array([columns.max() + 1, rows.max() + 1]) - [right, bottom]).max() <= 1
    config = TrainConfig(method="primaps", masks=made.id, classes=2, device="cpu", workers=0)
    model = train(config, context, options=PrimapsTrain(epochs=1))
    assert model.input("masks").id == made.id


def test_masks_of_other_images_than_the_features_are_refused(tmp_path, photos, context):
    made = bring(coco_file(tmp_path / "coco.json"), photos, context)
    save(photos / "d.png", np.zeros((32, 32, 3), np.uint8))
    extract(ExtractConfig(dataset=f"{photos}/", size=32, backbone="untrained", workers=0), context)
    with pytest.raises(UsageError, match=rf"'{made.id}' are of other images .*: 3\).*: 4\)"):
        train(TrainConfig(method="primaps", masks=made.id, classes=2, device="cpu"), context)
    with pytest.raises(UsageError, match="--masks alone does not say how to train: give --method"):
        train(TrainConfig(masks=made.id, device="cpu"), context)
    with pytest.raises(UsageError, match="'kmeans' reads no masks"):
        train(TrainConfig(method="kmeans", masks=made.id, device="cpu"), context)


def test_boxes_of_pseudolabels_lie_in_the_original_image_also_of_mirrored_crops(photos, context):
    config = ExtractConfig(
        dataset=f"{photos}/", size=32, geometry="ten-crop", backbone="untrained", workers=0, device="cpu"
    )
    features = FeatureSet(extract(config, context))
    made = pseudolabel(PseudolabelConfig(classes=3, sheet=0, workers=0, device="cpu"), context)
    reader = MaskReader(made, context)
    for view in (0, 3, 7, 19):
        left, top, right, bottom = features.views["box"][view]
        rows, columns = reader.label_map(view).shape
        for mask, box in zip(reader.masks(view), reader.boxes(view), strict=True):
            mask = mask[:, ::-1] if features.views["flip"][view] else mask
            ys, xs = np.nonzero(mask)
            expected = [
                left + xs.min() * (right - left) / columns,
                top + ys.min() * (bottom - top) / rows,
                left + (xs.max() + 1) * (right - left) / columns,
                top + (ys.max() + 1) * (bottom - top) / rows,
            ]
            np.testing.assert_allclose(box, expected)


def test_pseudolabels_of_earlier_versions_are_read(photos, context, tmp_path):
    """Their label maps and soft masks lie uncompressed, as arrays of grids and one row of values."""
    config = ExtractConfig(dataset=f"{photos}/", size=32, backbone="untrained", workers=0, device="cpu")
    features = FeatureSet(extract(config, context))
    made = pseudolabel(PseudolabelConfig(classes=3, sheet=0, workers=0, device="cpu"), context)
    old = Artifact(tmp_path / "old", made.manifest)
    old.path.mkdir()
    for name in ("masks.parquet", "state.safetensors"):
        (old.path / name).write_bytes((made.path / name).read_bytes())
    count = len(features)
    writer = GridWriter(old.path, "labels", features.grids, (), np.int16, count)
    writer.write(0, [LabelMaps(made)[view] for view in range(count)])
    writer.close()
    soft = [np.full((2, *grid), view, np.float16) for view, grid in enumerate(features.grids)]
    values = RaggedWriter(old.path / "soft")
    values.write(0, np.concatenate([one.ravel() for one in soft]))
    values.close()
    write_array(old.path / "soft_channels", np.full(count, 2))
    for view in range(count):
        np.testing.assert_array_equal(LabelMaps(old)[view], LabelMaps(made)[view])
        np.testing.assert_array_equal(
            MaskReader(old, context).boxes(view), MaskReader(made, context).boxes(view)
        )
        np.testing.assert_array_equal(SoftMasks(old, features.grids)[view], soft[view])
    assert len(read_masks(old, context).labels) == count


def test_a_command_a_recipe_and_a_dry_run(call, photos, tmp_path):
    path = coco_file(tmp_path / "coco.json")
    recipe = tmp_path / "brought.toml"
    recipe.write_text(
        f"""
name = "brought"
description = "trains on masks from outside"

[data]
dataset = "{photos}/"

[[stage]]
command = "import-masks"
masks_from = "coco.json"

[[stage]]
command = "extract"
backbone = "untrained"
size = 32
workers = 0

[[stage]]
command = "train"
method = "primaps"
classes = 2
masks = "import-masks"
set = {{ epochs = 1 }}
"""
    )
    planned, _ = call("run", recipe, "--dry-run")
    assert planned.count("would run") == 3
    made, _ = call("run", recipe)
    assert "primaps" in made
    again, said = call("import-masks", path, "--dataset", f"{photos}/")
    assert "reused" in said
    assert "summary masks 3" in " ".join(call("show", again)[0].split())
    assert call("verify")[1]
    assert "masks" in call("list")[0] + call("list")[1]
    _, said = call("import-masks", code=2)
    assert "COCO file (.json), or folder of label maps" in said
    _, said = call("import-masks", path, "--dataset", f"{photos}/", "--values", "classes", code=2)
    assert "is no folder of label maps" in said
