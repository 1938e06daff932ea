"""View tables, and where regions come from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.data.geometry import View
from unsupseg_cli.data.views import (
    BACKGROUND,
    FOREGROUND,
    Regions,
    anchors,
    cell_shares,
    coverage,
    covered_anchors,
    pyramid,
    table_of_regions,
    to_pixels,
)

COCO, VOC = (0.5, 0.4, 0.3, 0.2), (0.6, 0.5, 0.4, 0.3)


@pytest.mark.parametrize(
    ("height", "width", "scales", "count"),
    [(640, 640, COCO, 142), (640, 640, VOC, 70), (640, 1280, COCO, 306)],
)
def test_anchors_are_as_many_as_published(height, width, scales, count):
    assert len(anchors(height, width, scales)) == count


@given(st.integers(5, 900), st.integers(5, 900), st.sampled_from([0.1, 0.2, 0.37, 0.5, 1.0]))
def test_anchors_of_every_scale_cover_the_frame_and_stay_inside(height, width, scale):
    boxes = anchors(height, width, (scale,))
    assert (boxes >= 0).all()
    assert (boxes <= np.tile([width, height], 2) + 1e-9).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides.max(0) <= scale * min(height, width) * 1.05).all()
    for axis, length in ((0, width), (1, height)):
        starts, stops = np.unique(boxes[:, axis]), np.unique(boxes[:, axis + 2])
        assert starts[0] == 0
        assert stops[-1] == pytest.approx(length)
        assert (starts[1:] <= stops[:-1] + 1e-9).all()


@given(st.data())
def test_coverage_counts_cells_and_parts_of_them(data):
    h, w = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((h, w)) < 0.5
    left, right = sorted(data.draw(st.tuples(st.integers(0, 4 * w - 1), st.integers(1, 4 * w))))
    top, bottom = sorted(data.draw(st.tuples(st.integers(0, 4 * h - 1), st.integers(1, 4 * h))))
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    fine = np.kron(mask, np.ones((4, 4)))[top:bottom, left:right]
    share = coverage(mask, np.array([[left, top, right, bottom]]) / 4)
    assert share == pytest.approx(fine.mean())


def test_attention_decides_which_anchors_are_foreground():
    attention = np.zeros((20, 20, 3))
    attention[:, :8] = 1
    boxes = np.array([[0, 0, 8, 8], [12, 0, 20, 8], [4, 0, 12, 8], [5, 0, 13, 8]], float)
    kept, tags = covered_anchors(attention, boxes, foreground=0.45, background=0.8)
    assert kept.tolist() == [True, True, True, False]  # the last is foreground on three of eight columns
    assert tags[kept].tolist() == [FOREGROUND, BACKGROUND, FOREGROUND]
    kept, _ = covered_anchors(attention, boxes, foreground=0.45, background=1)
    assert kept.tolist() == [True, False, True, False]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 4), st.sampled_from([0.0, 0.25, 0.5]))
def test_every_level_of_a_pyramid_covers_the_image(height, width, levels, overlap):
    regions = pyramid(height, width, levels, overlap)
    assert regions.boxes[0].tolist() == [0, 0, width, height]
    assert len(regions.boxes) == sum((level + 1) ** 2 for level in range(levels + 1))
    for level in range(levels + 1):
        seen = np.zeros((height, width), bool)
        for left, top, right, bottom in regions.boxes[regions.tag == level]:
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            seen[top:bottom, left:right] = True
        assert seen.all()


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_of_a_view_become_pixels_of_its_image(flip):
    view = View(0, (10.0, 20.0, 30.0, 60.0), height=80, width=40, flip=flip)
    box = to_pixels(view.boxes_to_original(np.array([[0.0, 0.0, 20.0, 40.0]])), 100, 100)[0]
    assert box.tolist() == ([20, 20, 30, 40] if flip else [10, 20, 20, 40])
    sliver = to_pixels(view.boxes_to_original(np.array([[39.9, 79.9, 40.0, 80.0]])), 60, 30)[0]
    assert (sliver[2:] - sliver[:2] == 1).all()
    assert sliver[2] <= 30
    assert sliver[3] <= 60


def regions_of(*boxes):
    array = np.array(boxes, np.int64).reshape(-1, 4)
    return Regions(array, np.full(len(array), -1), np.arange(len(array)))


def test_a_table_of_regions_counts_any_number_of_an_image():
    found = [regions_of([0, 0, 5, 5], [1, 0, 9, 3]), regions_of(), regions_of([0, 0, 8, 8])]
    table = table_of_regions(["a", "b", "c"], [(10, 10)] * 3, found, side=20, patch=8)
    assert table.item.tolist() == [0, 0, 2]
    assert table.crop.tolist() == [0, 1, 0]
    assert set(table.height) | set(table.width) == {24}
    own = table_of_regions(["a", "b", "c"], [(10, 10)] * 3, found, side=None, patch=4)
    assert own.width.tolist() == [4, 8, 8]
    assert own.height.tolist() == [4, 4, 8]
    assert [len(run) for run in table.runs(0, 3, most_pixels=10**6)] == [2, 1]
    assert [len(run) for run in table.runs(0, 3, most_pixels=1)] == [1, 1, 1]
    assert len(table_of_regions([], [], [], 16, 8)) == 0


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([3, 3, 3, 8], "is empty"),
        ([0, 5, 4, 2], "is empty"),
        ([-1, 0, 4, 4], "reaches over its 12 x 10 pixels"),
        ([0, 0, 13, 4], "reaches over its 12 x 10 pixels"),
        ([0, 0, 4, 11], "reaches over its 12 x 10 pixels"),
    ],
)
def test_a_box_that_is_no_part_of_its_image_is_named(box, reason):
    with pytest.raises(UnsupsegError, match=rf"Box 1 of 'street/b\.png'.*{reason} \(1 of its 2 boxes\)"):
        table_of_regions(
            ["a.png", "street/b.png"], [(10, 12)] * 2, [regions_of(), regions_of([0, 0, 2, 2], box)], 16, 8
        )


def test_shares_of_cells_under_a_box_are_their_parts():
    shares = cell_shares(np.array([[0.5, 0.0, 2.0, 1.0]]), (2, 2))
    np.testing.assert_array_equal(shares, [[[0.5, 1.0], [0.0, 0.0]]])
