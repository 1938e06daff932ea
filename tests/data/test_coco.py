import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.coco import MalformedMask, decode, read_coco, run_lengths

MASKS = arrays.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)))


def compressed(mask):
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def plain(mask):
    values = mask.T.ravel().astype(int)
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    counts = np.diff(np.append(-1, ends)).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if values[0] else counts}


@settings(max_examples=150, deadline=None)
@given(mask=MASKS)
def test_run_lengths_compressed_or_not_are_the_mask_that_was_encoded(mask):
    np.testing.assert_array_equal(decode(compressed(mask), *mask.shape), mask)
    np.testing.assert_array_equal(decode(plain(mask), *mask.shape), mask)
    np.testing.assert_array_equal(
        decode({**compressed(mask), "counts": compressed(mask)["counts"].encode()}, *mask.shape), mask
    )


def test_long_runs_and_large_differences_are_read_as_pycocotools_writes_them():
    mask = np.zeros((3000, 2000), bool)
    mask[:, 700:702], mask[5:9, 1500], mask[17:2990, 1999] = True, True, True
    np.testing.assert_array_equal(decode(compressed(mask), *mask.shape), mask)
    assert run_lengths(compressed(mask)["counts"]).sum() == mask.size


def test_a_number_of_seven_characters_is_read_whole():
    """pycocotools loses what lies beyond the 32nd bit."""
    mask = decode({"size": [10, 10], "counts": ":d05doooooOd1"}, 10, 10)
    assert mask.T.ravel().nonzero()[0].tolist() == [*range(10, 30), *range(35, 43)]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=12))
def test_any_text_is_a_mask_or_said_to_be_none(text):
    with suppress(MalformedMask):
        assert decode({"size": [4, 5], "counts": text}, 4, 5).shape == (4, 5)


def test_polygons_are_filled_and_joined():
    square = decode([[2, 1, 6, 1, 6, 4, 2, 4]], 8, 10)
    expected = np.zeros((8, 10), bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(square, expected)
    expected[6:8, 0:3] = True
    np.testing.assert_array_equal(
        decode([[2, 1, 6, 1, 6, 4, 2, 4], [0, 6, 3, 6, 3, 8, 0, 8]], 8, 10), expected
    )


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([], "no segmentation"),
        (None, "no segmentation"),
        ("0 0 3 3", "no segmentation"),
        ([[0, 0, 3, 3]], r"4 numbers, expected x and y of at least three points"),
        ([[0, 0, 3, 3, 3, 0, 1]], "7 numbers"),
        ([[0, 0, 3, float("nan"), 3, 0]], "no list of numbers from -1e\\+15 to 1e\\+15"),
        ([[0, 0, 3, 1e30, 3, 0]], "no list of numbers from"),
        ([[0, 0, 3, "3", 3, 0]], "no list of numbers"),
        ([0, 0, 3, 3, 3, 0], "no list"),
        ([[0, 0, 30, 3, 3, 0]], r"from \(0, 0\) to \(30, 3\), out of its image of 10x8 pixels"),
        ([[0, -7, 3, 3, 3, 0]], "out of its image"),
        ({"size": [10, 8], "counts": [80]}, r"of size \[10, 8\] .height, width., its image is \[8, 10\]"),
        ({"counts": [80]}, "of size None"),
        ({"size": [8, 10], "counts": [70]}, "make 70 pixels, its image has 80"),
        ({"size": [8, 10], "counts": [10**15 - 1] * 18447}, "make 999999999999999 pixels, its image has 80"),
        ({"size": [8, 10], "counts": [90, -10]}, "hold -10, and none may be below 0"),
        ({"size": [8, 10], "counts": [1.5, 78.5]}, "neither a text nor whole numbers"),
        ({"size": [8, 10], "counts": [10**30]}, "neither a text nor whole numbers"),
        ({"size": [8, 10], "counts": [True, 79]}, "neither a text nor whole numbers"),
        ({"size": [8, 10]}, "neither a text nor whole numbers"),
        ({"size": [8, 10], "counts": ""}, "broken"),
        ({"size": [8, 10], "counts": "é"}, "broken"),
        ({"size": [8, 10], "counts": "\ud800"}, "broken"),  # JSON can hold half a character
        ({"size": [8, 10], "counts": "oooooooo1"}, "broken"),
        ({"size": [8, 10], "counts": "PPPPP"}, "broken"),
        ({"size": [8, 10], "counts": ";230009"}, "pixels, its image has 80"),
    ],
)
def test_a_segmentation_that_is_none_says_why(segmentation, said):
    with pytest.raises(MalformedMask, match=said):
        decode(segmentation, 8, 10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("3", "no COCO file: expected a JSON object"),
        ('{"annotations": []}', "lists no 'images'"),
        (
            '{"images": [{"id": 1, "file_name": "a"}]}',
            "expected a JSON object with 'images' and 'annotations'",
        ),
        ('{"images": [], "annotations": [{"image_id": 1}]}', "lists no 'images'"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": 3}', "'categories'"),
    ],
)
def test_a_file_that_is_no_coco_file_is_refused(tmp_path, text, said):
    path = tmp_path / "masks.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as error:
        read_coco(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_gone_or_no_text_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_coco(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        read_coco(tmp_path / "binary.json")


def test_records_that_say_nothing_are_problems_and_the_others_are_kept(tmp_path):
    path = tmp_path / "masks.json"
    entry = {"image_id": 1, "segmentation": [[0, 0, 1, 0, 1, 1]], "category_id": 3}
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}, {"id": 2}, 5],
        "categories": [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}, "bird", {"id": 4, "name": "cat"}],
        "annotations": [
            {"id": 7, **entry},
            {"id": 7, **entry},
            {"id": 8, **entry, "category_id": 4},
            {"id": 9, **entry, "score": float("nan")},
            {"id": 10, **entry, "category_id": 3.5},
            {"id": 11, "image_id": 1},
            {"id": 12, **entry, "image_id": None},
            {"id": 13, **entry, "image_id": True},
            {"id": 14, **entry, "iscrowd": "0"},
            "nothing",
        ],
    }
    path.write_text(json.dumps(content))
    file = read_coco(path)
    assert [record.place for record in file.records] == ["annotation 7"]
    assert file.categories == {3: "cat"}
    assert list(file.images) == [1]
    said = "\n".join(file.problems)
    for part in (
        "image number 1 ('b.png'): its id 1 is that of 'a.png'",
        "image number 2: expected an object with 'id' and 'file_name'",
        "category number 1: its id 3 is that of 'cat'",
        "category number 3: its name 'cat' is that of another category",
        "annotation 7: its id 7 is that of annotation number 0",
        "annotation 8: its category 4 is not among the categories",
        "annotation 9: its score is nan, expected a number from -1e+15 to 1e+15",
        "annotation 10: its category_id is 3.5",
        "annotation 11: it has no segmentation",
        "annotation 12: its image_id is None",
        "annotation 13: its image_id is True",
        "annotation 14: its iscrowd is '0', expected 0 or 1",
        "annotation number 9: expected an object",
    ):
        assert part in said
    assert len(file.problems) == 15
