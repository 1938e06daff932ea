import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.data.datasets import dataset_names, space_of
from unsupseg_cli.data.images import UnreadableImage
from unsupseg_cli.data.labels import LabelSpace, check_label_size, named_space, read_label

CAMVID = [
    "sky", "building", "pole", "road", "pavement", "tree", "signsymbol", "fence", "car", "pedestrian", "bicyclist"
]  # fmt: skip
HERE = Path("labels/a.png")


def class_file(folder: Path, content, name="classes.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def space_with(folder: Path, ids, void=(255,)) -> LabelSpace:
    classes = [{"name": f"class {i}", "id": i} for i in ids]
    return LabelSpace.from_file(class_file(folder, {"classes": classes, "void": list(void)}))


# Class files ---------------------------------------------------------------------------------------------


def test_names_with_one_void_value_as_camvid_ships_them(tmp_path):
    space = LabelSpace.from_file(class_file(tmp_path, {"classes": CAMVID, "void": 11}))
    assert space.names == tuple(CAMVID)
    assert space.encode(np.array([[0, 10, 11]]), HERE).tolist() == [[0, 10, VOID]]
    assert not space.by_color


def test_text_one_name_a_line(tmp_path):
    space = LabelSpace.from_file(class_file(tmp_path, "\ufeffsky\r\n\r\n  road side \n", "classes.txt"))
    assert space.names == ("sky", "road side")
    assert space.encode(np.array([[0, 1, 255]]), HERE).tolist() == [[0, 1, VOID]]


def test_objects_with_ids_colours_and_kinds(tmp_path):
    classes = [
        {"name": "sky", "id": 7, "color": [1, 2, 3], "kind": "stuff"},
        {"name": "car", "ids": [20, 3], "color": [4, 5, 6]},
    ]
    space = LabelSpace.from_file(class_file(tmp_path, {"classes": classes, "void": [0, 1]}))
    assert space.encode(np.array([[7, 20, 3, 0, 1]]), HERE).tolist() == [[0, 1, 1, VOID, VOID]]
    assert space.colors == ((1, 2, 3), (4, 5, 6))
    assert space.kinds == ("stuff", "")
    assert space.by_color
    with pytest.raises(UsageError, match="255"):
        space.encode(np.array([[255]]), HERE)


def test_a_bare_list_and_256_classes(tmp_path):
    space = LabelSpace.from_file(class_file(tmp_path, [f"c{i}" for i in range(256)]))
    assert space.encode(np.array([[255]]), HERE).tolist() == [[255]]
    assert len(set(space.colors)) > 200


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"classes": ["a", "b", "a"]}, "the name 'a' occurs twice"),
        ({"classes": [{"name": None}]}, "a class has the name null, expected a word"),
        ({"classes": [{"name": " "}]}, 'a class has the name " ", expected a word'),
        (
            {"classes": [{"name": "a", "id": 3}, {"name": "b", "ids": [1, 3]}]},
            "'a' and 'b' have the same id 3",
        ),
        (
            {"classes": [{"name": "a", "id": 3}, {"name": "b", "id": 4}], "void": 4},
            "4 is void and the class 'b'",
        ),
        ({"classes": []}, "names no class"),
        ({"classes": "abc"}, "no list"),
        ({"names": ["a"]}, "'classes' is missing"),
        ({"classes": [{"id": 1}]}, "'name' is missing"),
        ({"classes": ["a", 3]}, "class number 1 is 3, expected a name, or an object with name"),
        ({"classes": [None]}, "class number 0 is null"),
        ({"categories": ["a", "b"]}, 'category number 0 is "a", expected an object with name'),
        ({"classes": [{"name": "a", "ids": 3}]}, "the class 'a' has the ids 3, expected a list of numbers"),
        ({"classes": [{"name": "a", "color": 5}]}, "the color of 'a' is 5, expected three numbers"),
        ({"classes": ["a"], "void": "255"}, 'the void value is "255", expected whole numbers'),
        ({"classes": ["a"], "void": [[1]]}, r"the void value is \[1\]"),
        (3, "does not fit"),
        ({"classes": [{"name": "a", "id": -1}]}, "the id of 'a' is -1"),
        ({"classes": [{"name": "a", "id": "1"}]}, "the id of 'a' is '1'"),
        ({"classes": [{"name": "a", "color": [1, 2]}]}, r"the color of 'a' is \[1, 2\]"),
        ({"classes": [{"name": "a", "color": [1, 2, 256]}]}, "from 0 to 255"),
        ({"classes": ["a"], "void": "none"}, "does not fit"),
        ("{not json", "not valid JSON"),
    ],
)
def test_faulty_class_files_say_what_is_wrong(tmp_path, content, reason):
    with pytest.raises(UsageError, match=reason) as error:
        LabelSpace.from_file(class_file(tmp_path, content))
    assert "classes.json" in str(error.value)


def test_class_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.txt.*No such file"):
        LabelSpace.from_file(tmp_path / "gone.txt")
    with pytest.raises(UsageError, match="the class 'b' has the id 'x', expected a number"):
        LabelSpace.from_file(class_file(tmp_path, "name,id\na,0\nb,x\n", "table.txt"))
    (tmp_path / "latin.txt").write_bytes("Straße\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.txt.*UTF-8"):
        LabelSpace.from_file(tmp_path / "latin.txt")
    with pytest.raises(UsageError, match="names no class"):
        LabelSpace.from_file(class_file(tmp_path, "\n \n", "blank.txt"))


# Raw values to classes -----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 300), min_size=1, max_size=12, unique=True), st.data())
def test_encoding_is_a_look_up(ids, data):
    half = (len(ids) + 1) // 2
    mapping, void = {raw: i for i, raw in enumerate(ids[:half])}, frozenset(ids[half:])
    space = LabelSpace("s", tuple(map(str, mapping)), ((0, 0, 0),) * half, mapping, void)
    raw = data.draw(st.lists(st.integers(-2, 400), min_size=1, max_size=20))
    known = [value in mapping or value in void for value in raw]
    if all(known):
        expected = [mapping.get(value, VOID) for value in raw]
        assert space.encode(np.array([raw]), HERE).tolist() == [expected]
    else:
        with pytest.raises(UsageError, match="does not know"):
            space.encode(np.array([raw]), HERE)


def test_negative_void_values():
    space = LabelSpace("s", ("a",), ((0, 0, 0),), {0: 0}, frozenset({-1}))
    assert space.encode(np.array([[-1, 0]]), HERE).tolist() == [[VOID, 0]]


@pytest.mark.parametrize(
    ("ids", "void", "values", "named", "hint"),
    [
        (range(19), [255], range(7, 34), "19-33", "raw ids instead of train ids"),
        (range(7, 34), [255], range(19), "0-6", "seems to hold train ids"),
        (range(3), [255], [1, 2, 3], "3", "count from 1"),
        (range(3), [9], [0, 1, 255], "255", 'add it to "void"'),
        (range(3), [255], [0, 7001, 7002, 24000], "7001-7002, 24000", "instance ids"),
        ([4, 9], [255], [4, 30, 40], "30, 40", "Map them to classes"),
        ([40], [255], range(0, 40, 2), "0, 2, 4, 6, 8, 10, 12, 14, ...", "Map them to classes"),
    ],
)
def test_unknown_values_are_named_with_file_and_likely_cause(tmp_path, ids, void, values, named, hint):
    space = space_with(tmp_path, ids, void)
    with pytest.raises(UsageError, match=re.escape(f"does not know: {named}. ")) as error:
        space.encode(np.array([list(values)]), HERE)
    assert str(HERE) in str(error.value)
    assert "'classes'" in str(error.value)
    assert hint in str(error.value)


def test_colours_are_read_only_when_the_class_file_gives_them(tmp_path):
    raw = np.array([[[9, 8, 7], [1, 2, 3], [0, 0, 0]]])
    colored = [{"name": "a", "color": [1, 2, 3]}, {"name": "b", "color": [9, 8, 7]}]
    assert LabelSpace.from_file(class_file(tmp_path, colored)).encode(raw, HERE).tolist() == [[1, 0, VOID]]
    half = LabelSpace.from_file(class_file(tmp_path, [colored[0], "b"]))
    with pytest.raises(UsageError, match=r"a\.png.*RGB picture.*no colours"):
        half.encode(raw, HERE)
    with pytest.raises(UsageError, match="three channels are equal"):
        half.encode(np.array([[[1, 1, 1], [0, 0, 0]]]), HERE)
    black = LabelSpace.from_file(class_file(tmp_path, [colored[0], {"name": "b", "color": [0, 0, 0]}]))
    assert black.encode(raw[:, 1:], HERE).tolist() == [[0, 1]]


def test_wrong_and_repeated_colours_are_named(tmp_path):
    colored = [{"name": "a", "color": [1, 2, 3]}, {"name": "b", "color": [9, 8, 7]}]
    with pytest.raises(UsageError, match=re.escape("(5, 6, 7)")):
        LabelSpace.from_file(class_file(tmp_path, colored)).encode(np.array([[[5, 6, 7]]]), HERE)
    colored[1]["color"] = [1, 2, 3]
    twice = LabelSpace.from_file(class_file(tmp_path, colored))
    assert twice.encode(np.array([[1]]), HERE).tolist() == [[1]]  # numbers do not need the colours
    with pytest.raises(UsageError, match=r"'a' and 'b' have the same colour \(1, 2, 3\)"):
        twice.encode(np.array([[[1, 2, 3]]]), HERE)


# Label files ---------------------------------------------------------------------------------------------

IDS = np.array([[0, 1, 2], [3, 254, 255]], np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_gray_and_palette_give_the_stored_numbers(tmp_path, suffix):
    Image.fromarray(IDS).save(tmp_path / f"gray.{suffix}")
    palette = Image.fromarray(IDS, mode="P")
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    palette.save(tmp_path / f"palette.{suffix}")
    for name in ("gray", "palette"):
        raw = read_label(tmp_path / f"{name}.{suffix}")
        assert raw.dtype == np.int32
        assert raw.tolist() == IDS.tolist()


def test_palette_with_a_transparent_colour_and_few_bits(tmp_path):
    palette = Image.fromarray(IDS % 4, mode="P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 0, 0, 0, 7, 7, 7])
    palette.save(tmp_path / "a.png", bits=2, transparency=0)
    assert read_label(tmp_path / "a.png").tolist() == (IDS % 4).tolist()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_and_bilevel(tmp_path, suffix):
    wide = np.array([[0, 255, 256, 65535]], np.uint16)
    Image.fromarray(wide).save(tmp_path / f"wide.{suffix}")
    assert read_label(tmp_path / f"wide.{suffix}").tolist() == wide.tolist()
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / f"bits.{suffix}")
    assert read_label(tmp_path / f"bits.{suffix}").tolist() == [[0, 1]]


def test_colours_with_and_without_alpha(tmp_path):
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([rgb, [[255, 0]]]).astype(np.uint8)).save(tmp_path / "rgba.png")
    for name in ("rgb", "rgba"):
        assert read_label(tmp_path / f"{name}.png").tolist() == rgb.tolist()


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "JPEG")])
def test_lossy_labels_are_refused(tmp_path, suffix, kind):
    image = Image.fromarray(IDS)
    image.convert("RGB").save(tmp_path / f"a.{suffix}", kind)
    with pytest.raises(UsageError, match=rf"a\.{suffix}.*{kind} file.*PNG"):
        read_label(tmp_path / f"a.{suffix}")


def test_other_modes_and_damaged_labels(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UsageError, match=r"a\.tif.*mode F"):
        read_label(tmp_path / "a.tif")
    Image.fromarray(np.zeros((2, 2, 2), np.uint8), "LA").save(tmp_path / "la.png")
    with pytest.raises(UsageError, match=r"la\.png.*mode LA"):
        read_label(tmp_path / "la.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "la.png").read_bytes()[:20])
    for name in ("bad.png", "gone.png"):
        with pytest.raises(UnreadableImage, match=name):
            read_label(tmp_path / name)


def test_a_label_of_another_size_names_both():
    with pytest.raises(UsageError, match=r"'l\.png' is 3x2 pixels.*'i\.png' is 4x2"):
        check_label_size(Path("l.png"), (2, 3), Path("i.png"), (2, 4))
    check_label_size(Path("l.png"), (2, 3), Path("i.png"), (2, 3))


# Spaces that ship with the tool --------------------------------------------------------------------------


@pytest.mark.parametrize("name", dataset_names())
def test_every_known_data_set_has_a_space(name):
    space = space_of(name)
    assert len(space.names) == len(space.colors) == len(space.kinds) == len(set(space.mapping.values())) > 1


def test_cityscapes27():
    # Source: the Cityscapes label list; STEGO and its successors take ids 7 to 33 in order
    names = (
        "road, sidewalk, parking, rail track, building, wall, fence, guard rail, bridge, tunnel, pole, polegroup, "
        "traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck, bus, caravan, trailer, "
        "train, motorcycle, bicycle"
    )
    space = named_space("cityscapes27")
    assert space.names == tuple(names.split(", "))
    assert dict(space.mapping) == {raw: raw - 7 for raw in range(7, 34)}
    assert space.encode(np.arange(7)[None], HERE).tolist() == [[VOID] * 7]


def test_cocostuff27():
    # Source: COCO-Stuff's 182 fine ids in 27 groups, the table that PiCIE and STEGO share
    groups = [
        "electronic-things 71-76", "appliance-things 77-82", "food-things 51-60", "furniture-things 61-70",
        "indoor-things 83-90", "kitchen-things 43-50", "accessory-things 25-32", "animal-things 15-24",
        "outdoor-things 9-14", "person-things 0", "sports-things 33-42", "vehicle-things 1-8",
        "ceiling-stuff 101 102", "floor-stuff 100 113-117", "food-stuff 120 121 152 169",
        "furniture-stuff 97 106 107 109 111 122 129 132 155 160 164", "rawmaterial-stuff 99 131 138 142",
        "textile-stuff 91 92 103 104 108 130 136 140 151 166 167", "wall-stuff 170-176", "window-stuff 179 180",
        "building-stuff 94 95 127 150 157 165", "ground-stuff 110 124 125 135 139 143 144 146 148 153 158",
        "plant-stuff 93 96 118 123 128 133 141 162 168", "sky-stuff 105 156",
        "solid-stuff 126 134 149 159 161 181", "structural-stuff 98 112 137 145 163",
        "water-stuff 119 147 154 177 178",
    ]  # fmt: skip
    expected = {}
    for index, group in enumerate(groups):
        for part in group.split()[1:]:
            low, _, high = part.partition("-")
            expected |= dict.fromkeys(range(int(low), int(high or low) + 1), index)
    space = named_space("cocostuff27")
    assert space.names == tuple(group.split()[0] for group in groups)
    assert dict(space.mapping) == expected
    assert sorted(expected) == list(range(182))
    assert space.kinds == ("thing",) * 12 + ("stuff",) * 15
    assert space.encode(np.array([[255]]), HERE).tolist() == [[VOID]]


def test_potsdam3():
    space = named_space("potsdam3")
    assert dict(space.mapping) == {0: 0, 4: 0, 1: 1, 5: 1, 2: 2, 3: 2}
    with pytest.raises(UsageError, match="6"):
        space.encode(np.array([[6]]), HERE)  # never silently the first class


def test_voc2012():
    names = (
        "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
        "pottedplant sheep sofa train tvmonitor"
    )
    space = named_space("voc2012")
    assert space.names == tuple(names.split())
    assert dict(space.mapping) == {i: i for i in range(21)}
    assert space.void == {255}


def test_camvid11():
    space = named_space("camvid11")
    assert space.names == tuple(CAMVID)
    assert dict(space.mapping) == {i: i for i in range(11)}
    assert {11, 255} == space.void
    published = Path(__file__).parents[2] / ".." / "shared" / "data" / "camvid" / "classes.json"
    if not published.is_file():
        pytest.skip("CamVid is not on this machine")
    theirs = LabelSpace.from_file(published)
    assert (theirs.names, dict(theirs.mapping)) == (space.names, dict(space.mapping))


def test_a_label_of_several_pages_is_refused_but_not_one_with_a_thumbnail(tmp_path):
    label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(label)
        file.write(label[::2, ::2], subfiletype=1)
    assert (read_label(path) == label).all()
    with tifffile.TiffWriter(path) as file:
        for _ in range(2):
            file.write(label)
    with pytest.raises(UsageError, match=r"a\.tif' has 2 pages; save the one that belongs to its image"):
        read_label(path)
