"""`export-labels`: what other programs read is what the label maps say."""

import json
import zipfile
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from typer.testing import CliRunner

from unsupseg_cli import Context
from unsupseg_cli.cli.main import app
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.exchange.label_studio import brush
from unsupseg_cli.exchange.table import FORMATS, suffix_of
from unsupseg_cli.pipeline.export_labels import export_labels
from unsupseg_cli.pipeline.options import ExportLabelsConfig

from fixtures.labelled import predictions_of  # isort: skip

NAMES = ["sky", 'road: "wet" #1', "<b>roof</b>", "bäckground"]


@pytest.fixture
def labels():
    first = np.zeros((24, 32), np.int16)
    first[12:] = 1
    first[2:6, 3:9] = first[2:6, 20:30] = 2
    first[3:5, 22:28] = 0  # a hole
    first[20:, 28:] = -1
    second = np.full((17, 13), 3, np.int16)
    second[0, 0] = 2
    return {"a.png": first, "deep/c d.jpg": second}


@pytest.fixture(params=[(0, 1, 2, 3), (0, 2, 5, 9)], ids=["unmerged", "merged"])
def ids(request):
    """The ids of the classes; after merges some numbers have no class."""
    return request.param


@pytest.fixture
def predictions(labels, context, tmp_path, ids):
    return predictions_of(labels, NAMES, context, tmp_path / "photos", ids=ids)


@pytest.fixture
def label_ids(labels, ids):
    return {key: np.array([*ids, -1])[values] for key, values in labels.items()}


def written(predictions, context, format, out, **options):
    return export_labels(ExportLabelsConfig(format=format, out=out, **options), predictions.id, context)


def test_panoptic_segments_are_the_label_maps(predictions, label_ids, ids, context, tmp_path):
    out = written(predictions, context, "coco-panoptic", tmp_path / "out", things=["<b>roof</b>"])
    content = json.loads((out / "annotations/panoptic_default.json").read_text())
    assert [(one["file_name"], one["height"], one["width"]) for one in content["images"]] == [
        ("a.png", 24, 32),
        ("deep/c d.jpg", 17, 13),
    ]
    assert [(one["name"], one["isthing"]) for one in content["categories"]] == list(
        zip(NAMES, (0, 0, 1, 0), strict=True)
    )
    assert [one["id"] - 1 for one in content["categories"]] == list(ids)
    for values, one in zip(label_ids.values(), content["annotations"], strict=True):
        parts = np.asarray(Image.open(out / "annotations/panoptic_default" / one["file_name"])).astype(int)
        numbers = parts @ (1, 256, 65536)
        found = np.full(values.shape, -1)
        for segment in one["segments_info"]:
            mask = numbers == segment["id"]
            assert mask.sum() == segment["area"] > 0
            x, y, width, height = segment["bbox"]
            assert mask[y : y + height, x : x + width].sum() == segment["area"]
            found[mask] = segment["category_id"] - 1
        np.testing.assert_array_equal(found, values)
    roofs = [one for one in content["annotations"][0]["segments_info"] if one["category_id"] == ids[2] + 1]
    assert len(roofs) == 2


def test_instances_are_read_by_cocos_own_reader(predictions, label_ids, ids, context, tmp_path):
    coco = COCO(str(written(predictions, context, "coco-instances", tmp_path / "out.json")))
    for number, values in enumerate(label_ids.values(), 1):
        found = np.full(values.shape, -1)
        for one in coco.loadAnns(coco.getAnnIds(imgIds=number)):
            mask = coco.annToMask(one).astype(bool)
            assert mask.sum() == one["area"]
            assert (found[mask] == -1).all()
            found[mask] = one["category_id"] - 1
        np.testing.assert_array_equal(found, values)
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == NAMES
    assert [number - 1 for number in coco.getCatIds()] == list(ids)
    large = written(
        predictions, context, "coco-instances", tmp_path / "large.json", min_area=25, things=[str(ids[2])]
    )
    assert [one["area"] for one in json.loads(large.read_text())["annotations"]] == [28]


def test_yolo_polygons_drawn_again_are_the_label_maps(predictions, labels, ids, context, tmp_path):
    said = []
    context.reporter.warn = said.append
    out = written(predictions, context, "yolo-seg", tmp_path / "out")
    about = yaml.safe_load((out / "data.yaml").read_text())
    assert about["train"] == about["val"] == "images/train"
    assert "path" not in about  # relative to the file, wherever the trainer is called
    assert about["names"] == dict(enumerate(NAMES))  # without holes, and said where that makes a difference
    merged = "YOLO's numbers of classes have no holes, so that they are not the ids: 2 is 1, 5 is 2, 9 is 3"
    assert said == ([merged] if ids[-1] == 9 else [])
    folder = out / about["train"]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*g")) == [
        "a.png",
        "deep/c d.jpg",
    ]
    scale = 8  # polygons run along the edges of pixels, so that drawn large they fill whole ones
    for name, values in (("a", labels["a.png"]), ("deep/c d", labels["deep/c d.jpg"])):
        height, width = values.shape
        found = np.full(values.shape, -1)
        for line in (out / "labels" / "train" / f"{name}.txt").read_text().splitlines():
            group, *corners = line.split()
            points = np.array(corners, float).reshape(-1, 2)
            assert len(points) >= 4
            assert ((points >= 0) & (points <= 1)).all()
            canvas = Image.new("L", (width * scale, height * scale))
            ImageDraw.Draw(canvas).polygon([(x * width * scale, y * height * scale) for x, y in points], 1)
            found[np.asarray(canvas)[scale // 2 :: scale, scale // 2 :: scale] == 1] = int(group)
        np.testing.assert_array_equal(found, values)


def test_voc_and_cvat_hold_the_classes_by_value_and_by_colour(
    predictions, labels, label_ids, context, tmp_path
):
    said = []
    context.reporter.warn = said.append
    out = written(predictions, context, "voc", tmp_path / "voc", bring_images="copy")
    assert said == [
        "'road: \"wet\" #1' is called 'road_ \"wet\" _1' in labelmap.txt",
    ]
    with zipfile.ZipFile(written(predictions, context, "cvat", tmp_path / "cvat.zip")) as archive:
        archive.extractall(tmp_path / "cvat")
        table = archive.read("labelmap.txt").decode()
    assert (out / "labelmap.txt").read_text() == f"{table}ignored:224,224,192::\n"
    lines = [line.split(":") for line in table.splitlines()[1:]]
    assert [line[0] for line in lines] == ["background", "sky", 'road_ "wet" _1', "<b>roof</b>", "bäckground"]
    colors = np.array([[int(value) for value in line[1].split(",")] for line in lines])
    listed = (out / "ImageSets/Segmentation/default.txt").read_text().splitlines()
    assert listed == ["a", "deep/c d"]
    assert (out / "JPEGImages/a.png").read_bytes() == (tmp_path / "photos/a.png").read_bytes()
    for name, values in zip(listed, labels.values(), strict=True):
        with Image.open(out / "SegmentationClass" / f"{name}.png") as picture:
            assert picture.mode == "P"
            numbers = np.asarray(picture).astype(int)
            shown = np.asarray(picture.convert("RGB"))
        key = {"a": "a.png", "deep/c d": "deep/c d.jpg"}[name]
        np.testing.assert_array_equal(np.where(numbers == 255, -1, numbers - 1), label_ids[key])
        masks = np.asarray(Image.open(tmp_path / "cvat/SegmentationClass" / f"{name}.png"))
        np.testing.assert_array_equal(masks, np.where(values[..., None] == -1, 0, colors[values + 1]))
        np.testing.assert_array_equal(shown[values >= 0], masks[values >= 0])


def test_label_studios_masks_are_the_label_maps(predictions, labels, context, tmp_path):
    out = written(predictions, context, "label-studio", tmp_path / "out", url="/data/local-files/?d=")
    tasks = json.loads((out / "tasks.json").read_text())
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=deep/c%20d.jpg"
    for task, values in zip(tasks, labels.values(), strict=True):
        found = np.full(values.shape, -1)
        for one in task["predictions"][0]["result"]:
            assert (one["original_height"], one["original_width"]) == values.shape
            mask = by_description(one["value"]["rle"]).reshape(*values.shape, 4)[..., 3] == 255
            found[mask] = NAMES.index(one["value"]["brushlabels"][0])
        np.testing.assert_array_equal(found, values)
    config = ElementTree.parse(out / "labels.xml").getroot()
    assert [one.get("value") for one in config.iter("Label")] == NAMES
    assert next(config.iter("Label")).get("background") == "#14c85a"


def by_description(rle):
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    count, width = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values = []
    while len(values) < count:
        run = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(width)] * length if run else [read(width) for _ in range(length)]
    return np.array(values, np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (300, 400)])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_brush_masks_of_any_size_come_back(shape, share):
    mask = np.random.default_rng(0).random(shape) < share
    np.testing.assert_array_equal(by_description(brush(mask)).reshape(*shape, 4)[..., 0] == 255, mask)


def test_hdf5_holds_label_maps_under_their_keys(predictions, label_ids, ids, context, tmp_path):
    with h5py.File(written(predictions, context, "hdf5", tmp_path / "out.h5")) as file:
        assert list(file.attrs["class_names"]) == NAMES
        assert tuple(file.attrs["class_ids"]) == ids
        for key, values in label_ids.items():
            found = file["labels"][key][:].astype(int)
            np.testing.assert_array_equal(np.where(found == file.attrs["void"], -1, found), values)


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("geojson", "gpkg")])
def test_images_that_are_gone_are_no_hindrance(predictions, context, tmp_path, format):
    (tmp_path / "photos" / "a.png").unlink()
    said = []
    context.reporter.warn = said.append
    out = tmp_path / f"out{suffix_of(format)}"
    written(predictions, context, format, out)
    gone = [line for line in said if "gone" in line]
    assert gone == (
        ["1 image is gone (such as 'a.png'): their labels stand alone"]
        if format in ("coco-panoptic", "yolo-seg", "voc")
        else []
    )
    with pytest.raises(UsageError, match="exists"):
        written(predictions, context, format, out)
    written(predictions, Context(context.workspace, force=True), format, out)


@pytest.mark.parametrize(("format", "images"), [("yolo-seg", "images/train"), ("voc", "JPEGImages")])
def test_images_and_labels_have_one_name_and_changed_images_are_told(
    labels, context, tmp_path, format, images
):
    names = ("a.jpg", "a.jpg.jpg", "b.png", "b.png.png")
    found = predictions_of(dict.fromkeys(names, labels["a.png"]), NAMES, context, tmp_path / "photos")
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "b.png.png")
    said = []
    context.reporter.warn = said.append
    for how in ("link", "copy"):
        out = written(found, context, format, tmp_path / how, bring_images=how)
        for name in names[:3]:
            assert (out / images / name).read_bytes() == (tmp_path / "photos" / name).read_bytes()
        there = {path.relative_to(out).as_posix() for path in out.rglob("*")}
        kind = ("labels/train", "txt") if format == "yolo-seg" else ("SegmentationClass", "png")
        assert {f"{kind[0]}/{stem}.{kind[1]}" for stem in ("a", "a.jpg", "b", "b.png")} <= there
        assert "1 image is changed since (such as 'b.png.png'): their labels stand alone" in said


def test_names_that_a_label_map_cannot_hold_stay_apart(labels, context, tmp_path):
    names = ["a:b", "a_b", "background", "a#b"]
    found = predictions_of({"a.png": labels["a.png"]}, names, context, tmp_path / "photos")
    out = written(found, context, "voc", tmp_path / "out")
    listed = [line.split(":")[0] for line in (out / "labelmap.txt").read_text().splitlines()[2:]]
    assert listed[:4] == ["a_b_", "a_b", "background_", "a_b__"]


def test_names_in_any_script_reach_yolo(labels, context, tmp_path):
    names = ["\U0001f697 car", 'so "called"', "Straße", "道"]
    found = predictions_of({"a.png": labels["a.png"]}, names, context, tmp_path / "photos")
    out = written(found, context, "yolo-seg", tmp_path / "out")
    assert list(yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))["names"].values()) == names


def test_a_place_below_a_file_is_told(predictions, context, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"'.*file' is a file, no folder"):
        written(predictions, context, "hdf5", tmp_path / "file" / "x.h5")


def test_what_does_not_fit_a_format_is_said(labels, context, tmp_path):
    values = labels["a.png"]
    twins = predictions_of({"x/a.png": values, "x/a.jpg": values}, NAMES, context, tmp_path / "twins")
    for name, out in (("yolo-seg", "a"), ("voc", "a"), ("cvat", "a.zip")):
        with pytest.raises(UsageError, match=r"'x/a\.png' and 'x/a\.jpg' would both be 'x/a'"):
            written(twins, context, name, tmp_path / out)
        assert not (tmp_path / out).exists()
    alike = predictions_of(
        {"a.png": values}, NAMES, context, tmp_path / "alike", [(1, 2, 3), (0, 0, 0), (1, 2, 3), (4, 5, 6)]
    )
    with pytest.raises(UsageError, match="colour of 'the background'"):
        written(alike, context, "cvat", tmp_path / "b.zip")
    many = predictions_of({"a.png": values}, [f"class {i}" for i in range(300)], context, tmp_path / "many",
                          [(i % 256, i // 256, 7) for i in range(300)])  # fmt: skip
    with pytest.raises(UsageError, match=r"ids up to 299 do not fit.*merge those above 253"):
        written(many, context, "voc", tmp_path / "c")
    with h5py.File(written(many, context, "hdf5", tmp_path / "c.h5")) as file:
        assert file["labels/a.png"].dtype == np.uint16
    with pytest.raises(UsageError, match="no class 'car'"):
        written(many, context, "coco-instances", tmp_path / "d.json", things=["car"])
    with pytest.raises(UsageError, match=r"ends in \.json"):
        written(many, context, "coco-instances", tmp_path / "d.txt")
    with pytest.raises(UsageError, match="--min-area has no effect: coco-panoptic writes no regions without"):
        written(many, context, "coco-panoptic", tmp_path / "d", min_area=9)
    with pytest.raises(UsageError, match="--url has no effect"):
        written(many, context, "voc", tmp_path / "d", url="x")


def test_turned_and_unreadable_images_are_told(labels, context, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (24, 32)).save(tmp_path / "photos" / "a.jpg", exif=exif)
    Image.new("RGB", (24, 32)).save(
        tmp_path / "photos" / "b.jpg", exif=exif
    )  # of which there is no label map
    exif[0x0112] = 77  # turns nothing
    Image.new("RGB", (32, 24)).save(tmp_path / "photos" / "c.jpg", exif=exif)
    said = []
    context.reporter.warn = said.append
    maps = dict.fromkeys(("a.jpg", "c.jpg"), labels["a.png"])
    found = predictions_of(maps, NAMES, context, tmp_path / "photos", skipped=["b.jpg"])
    written(found, context, "hdf5", tmp_path / "out.h5")
    assert "1 image that could not be read has no label map" in said[0]
    assert "1 image is turned by EXIF orientation" in said[1]


def test_the_command_prints_what_it_wrote(predictions, context, tmp_path):
    out = tmp_path / "new" / "out"
    call = [
        "export-labels",
        "--format",
        "yolo-seg",
        "--out",
        out,
        "--min-area",
        2,
        "-w",
        context.workspace.root,
    ]
    done = CliRunner().invoke(app, [str(word) for word in call])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    assert "1 region of less than 2 pixels" in " ".join(done.stderr.split())
    assert not [path for path in out.parent.iterdir() if path != out]
