"""What the values of labels mean is settled over all of them, and said."""

import json

import numpy as np
import pytest
from PIL import Image

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.label_survey import remark_on_counts, settle_labels
from unsupseg_cli.data.labels import LabelSpace
from unsupseg_cli.data.truth import read_truth

LEFT_RIGHT = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.uint8)
COLORS = [{"name": "road", "color": [255, 0, 0]}, {"name": "sky", "color": [0, 255, 0]}]


def labelled(folder, classes, *labels, orientation=None, label_orientation=None, name="classes.json"):
    """Write images with these labels and a class file; return the data set."""
    for kind in ("i", "l"):
        (folder / kind).mkdir()
    for number, label in enumerate(labels):
        label = label if isinstance(label, Image.Image) else Image.fromarray(label)
        size = label.size[::-1] if orientation in (5, 6, 7, 8) and label_orientation is None else label.size
        image = Image.new("RGB", size)
        image.save(folder / f"i/{number}.jpg", exif=exif_of(orientation))
        label.save(folder / f"l/{number}.png", exif=exif_of(label_orientation))
    file = folder / name
    file.write_text(classes if isinstance(classes, str) else json.dumps(classes))
    return open_dataset(f"{folder}/i/", labels=folder / "l", class_file=file)


def exif_of(orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    return exif


def read(dataset):
    """Return the classes of the first label as the data set is settled, and the remarks."""
    space, remarks = settle_labels(dataset.items, dataset.space)
    height, width = np.asarray(Image.open(dataset.items[0].label)).shape[:2]
    return read_truth(dataset.items[0], space, (height, width)).tolist(), " ".join(remarks)


def paletted(ids, colors):
    image = Image.fromarray(ids, mode="P")
    image.putpalette([value for color in colors for value in color])
    return image


# Masks of 0 and 255 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["gray", "palette", "palette with colours", "16 bit", "white of 16 bit", "bilevel"]
)
def test_masks_of_0_and_255_are_two_classes(tmp_path, form):
    ids = LEFT_RIGHT * 255
    label = {
        "gray": lambda: Image.fromarray(ids),
        "palette": lambda: paletted(ids, [(i, i, i) for i in range(256)]),
        "palette with colours": lambda: paletted(ids, [(i, 0, 255 - i) for i in range(256)]),
        "16 bit": lambda: Image.fromarray(ids.astype(np.uint16)),
        "white of 16 bit": lambda: Image.fromarray(ids.astype(np.uint16) * 257),
        "bilevel": lambda: Image.fromarray(ids).convert("1"),
    }[form]()
    classes, remarks = read(labelled(tmp_path, "background\nobject\n", label, name="c.txt"))
    assert classes == LEFT_RIGHT.tolist()
    assert ("5 as 'object'" in remarks) == (form != "bilevel")  # whose values are 0 and 1


def test_one_label_with_a_1_leaves_255_void_in_all(tmp_path):
    dataset = labelled(tmp_path, ["background", "object"], LEFT_RIGHT * 255, LEFT_RIGHT)
    classes, remarks = read(dataset)
    assert (classes, remarks) == ([[0, 0, VOID, VOID]] * 2, "")


def test_a_stated_void_of_255_stays_void_and_what_it_covers_is_said(tmp_path):
    dataset = labelled(tmp_path, {"classes": ["background", "object"], "void": 255}, LEFT_RIGHT * 255)
    assert read(dataset)[0] == [[0, 0, VOID, VOID]] * 2
    said = " ".join(remark_on_counts(dataset.space, {0: 4, 1: 0, VOID: 4}))
    assert "1 of 2 classes never occur in these labels: object" in said
    assert "50 % of the labels' pixels are void (255)" in said
    assert remark_on_counts(dataset.space, {0: 4, 1: 4, VOID: 1}) == []


def test_one_class_for_masks_of_two_values_is_refused(tmp_path):
    with pytest.raises(UsageError, match="names one class, 'object': name both"):
        read(labelled(tmp_path, ["object"], LEFT_RIGHT * 255))


# Palettes ------------------------------------------------------------------------------------------------


def test_colour_masks_saved_with_a_palette_are_read_by_colour(tmp_path):
    rgb = Image.fromarray(np.array([[255, 0, 0], [0, 255, 0]], np.uint8)[LEFT_RIGHT])
    swapped = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    assert np.asarray(swapped).tolist() != LEFT_RIGHT.tolist()
    classes, remarks = read(labelled(tmp_path, COLORS, swapped))
    assert classes == LEFT_RIGHT.tolist()
    assert "read by colour" in remarks
    assert "'sky'" in remarks


def test_numbers_and_colours_that_contradict_are_refused_with_both_readings(tmp_path):
    classes = [{**entry, "id": number} for number, entry in enumerate(COLORS)]
    label = paletted(LEFT_RIGHT, [(0, 255, 0), (255, 0, 0)])
    with pytest.raises(UsageError, match=r"number 0 of .* is 'road', its palette colour \(0, 255, 0\) 'sky'"):
        read(labelled(tmp_path, classes, label))


@pytest.mark.parametrize(
    "colors",
    [
        [(255, 0, 0), (0, 255, 0)],  # the classes' own
        [(0, 0, 0), (1, 1, 1)],  # shades that show the numbers
        [(128, 0, 0), (0, 128, 0)],  # VOC's, which say nothing here
    ],
)
def test_palettes_that_do_not_contradict_are_read_by_number(tmp_path, colors):
    assert read(labelled(tmp_path, COLORS, paletted(LEFT_RIGHT, colors))) == (LEFT_RIGHT.tolist(), "")


def test_one_number_in_two_colours_is_told_where_the_class_file_has_no_colours(tmp_path):
    labels = (paletted(LEFT_RIGHT, colors) for colors in ([(9, 0, 0), (0, 9, 0)], [(0, 9, 0), (9, 0, 0)]))
    assert (
        "the palettes of the labels differ: the number 0 is (9, 0, 0)"
        in read(labelled(tmp_path, ["road", "sky"], *labels))[1]
    )


def test_the_border_of_voc_is_void_and_a_class_called_void_is_told(tmp_path):
    colors = np.array([[255, 0, 0], [224, 224, 192]], np.uint8)
    dataset = labelled(
        tmp_path, "road 255 0 0\nVoid 1 1 1\n", Image.fromarray(colors[LEFT_RIGHT]), name="c.txt"
    )
    classes, remarks = read(dataset)
    assert classes == [[0, 0, VOID, VOID]] * 2
    assert "the class 'Void' of 'c' is scored like any other" in remarks


# EXIF orientation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_image_and_label_are_each_turned_by_their_own_orientation(tmp_path, orientation):
    dataset = labelled(tmp_path, ["a", "b"], LEFT_RIGHT, orientation=orientation)
    classes, remarks = read(dataset)  # drawn over the upright image, as annotation tools show it
    assert classes == LEFT_RIGHT.tolist()
    assert f"'0.jpg': {orientation}, '0.png': 1" in remarks


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_label_of_the_stored_pixels_is_told_by_its_size(tmp_path, orientation):
    dataset = labelled(tmp_path, ["a", "b"], LEFT_RIGHT, orientation=orientation, label_orientation=1)
    with pytest.raises(UsageError, match=rf"before the turn of its EXIF orientation {orientation}: turn"):
        read_truth(dataset.items[0], dataset.space, (4, 2))


# Class files of annotation tools -------------------------------------------------------------------------


SUPERVISELY = {
    "classes": [
        {"title": "road", "shape": "bitmap", "color": "#FF0000", "id": 7, "hotkey": ""},
        {"title": "sky", "shape": "bitmap", "color": "#00FF00", "id": 3, "hotkey": ""},
    ],
    "tags": [],
}
CVAT = "# label:color_rgb:parts:actions\nroad:255,0,0::\nsky:0,255,0::\n"
BY_COLOR = {
    "meta.json": json.dumps(SUPERVISELY),
    "labelmap.txt": CVAT,
    "raw.json": json.dumps(
        [{"name": c["name"], "id": 99, "color": c["color"], "attributes": []} for c in COLORS]
    ),
    "colors.txt": "255 0 0\troad\n0 255 0\tsky\n",
    "table.txt": "road 255 0 0\nsky 0 255 0\n",
    "class_dict.csv": "name,r,g,b\nroad,255,0,0\nsky,0,255,0\n",
    "colors.json": json.dumps({"road": [255, 0, 0], "sky": [0, 255, 0]}),
    "gimp.gpl": "GIMP Palette\nName: mine\nColumns: 0\n#\n255   0   0\troad\n  0 255   0\tsky\n",
}


@pytest.mark.parametrize("name", BY_COLOR)
def test_tables_of_colours_are_read_by_colour_and_never_by_position(tmp_path, name):
    rgb = Image.fromarray(np.array([[255, 0, 0], [0, 255, 0]], np.uint8)[LEFT_RIGHT])
    dataset = labelled(tmp_path, BY_COLOR[name], rgb, name=name)
    assert dataset.space.names == ("road", "sky")
    assert read(dataset)[0] == LEFT_RIGHT.tolist()
    with pytest.raises(UsageError, match="gives colours only: give label images in these colours"):
        dataset.space.encode(LEFT_RIGHT, dataset.items[0].label)
    palette = tmp_path / "l" / "0.png"
    rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=2).save(palette)
    assert read(dataset)[0] == LEFT_RIGHT.tolist()


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("labels.txt", "__ignore__\n_background_\nroad\n", {0: "_background_", 1: "road"}),
        ("numbered.txt", "1 road\n2: night sky\n", {1: "road", 2: "night sky"}),
        ("after.txt", "road: 4\nsky: 2\n", {4: "road", 2: "sky"}),
        ("objectInfo150.txt", "Idx\tRatio\tName\n1\t0.2\twall\n2\t0.1\tsky\n", {1: "wall", 2: "sky"}),
        ("_classes.csv", "Pixel Value, Class\n3, road\n0, sky\n", {3: "road", 0: "sky"}),
        (
            "notes.json",
            {"categories": [{"id": 3, "name": "road"}, {"id": 1, "name": "sky"}]},
            {3: "road", 1: "sky"},
        ),
        ("id2label.json", {"4": "road", "2": "sky"}, {4: "road", 2: "sky"}),
        ("label2id.json", {"road": 4, "sky": 2}, {4: "road", 2: "sky"}),
        (
            "qgis.txt",
            "# QGIS\nINTERPOLATION:DISCRETE\n0,9,9,9,255,sky\n1,7,7,7,255,road\n",
            {0: "sky", 1: "road"},
        ),
        ("headed.txt", "name\nroad\nsky\n", {0: "road", 1: "sky"}),
        ("plain.txt", "wall, brick\nsky 2\n", {0: "wall, brick", 1: "sky 2"}),
    ],
)
def test_numbers_of_other_class_files_are_theirs(tmp_path, name, content, ids):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    space = LabelSpace.from_file(path)
    assert {raw: space.names[index] for raw, index in space.mapping.items()} == ids


def test_things_of_a_panoptic_file_are_a_kind(tmp_path):
    path = tmp_path / "panoptic.json"
    categories = [{"id": 3, "name": "car", "isthing": 1}, {"id": 1, "name": "sky", "isthing": 0}]
    path.write_text(json.dumps({"categories": categories}))
    assert LabelSpace.from_file(path).by_kind == {"thing": [0], "stuff": [1]}
    path.write_text(json.dumps({"categories": categories[:1]}))
    assert LabelSpace.from_file(path).by_kind == {}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.xml", '<View><BrushLabels><Label value="Road"/></BrushLabels></View>', "it is XML"),
        ("export.json", '[{"id": 1, "annotations": [], "data": {}}]', "holds annotations"),
        ("data.yaml", "names:\n  0: person\n", "it is YAML"),
        ("via.json", '{"_via_settings": {}, "_via_img_metadata": {}}', "VGG Image Annotator"),
        ("export.ndjson", '{"data_row": {}}\n{"data_row": {}}\n', "a record of JSON a line"),
        ("classes.txt", "sky, road, tree\n", "one line with several names"),
        ("map.pbtxt", "item {\n name: 'a'\n}", "pbtxt"),
        ("hex.csv", "category,color\nroad,#ff0000\nsky,#00ff00\n", "columns without a known heading"),
        ("hex.txt", "#ff0000\troad\n#00ff00\tsky\n", "columns without a known heading"),
        ("notes.md", "| id | name |\n|---|---|\n| 0 | road |\n", "columns without a known heading"),
        ("colors.txt", "0 255 0 0\n1 0 255 0\n", "numbers only"),
        ("deep.json", "[" * 100_000, "nested without end"),
        ("esc.txt", "a\x1b[31m\nb\n", r"a\\x1b\[31m' has characters that a terminal would obey"),
        ("info.txt", "Group\tName\tClass\n1\twall\t0.2\n", "is a table"),
        ("mine.json", '{"classes": [{"name": "a", "trainId": 3}]}', "'trainId' of a class is not known"),
        ("mine.json", '{"classes": ["a"], "ignore": 3}', "'ignore' is not known"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad\n", "CVAT's labelmap.txt"),
    ],
)
def test_what_is_no_class_file_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said) as error:
        LabelSpace.from_file(tmp_path / name)
    assert name in str(error.value)
