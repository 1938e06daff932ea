import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from unsupseg_cli.data import masks as module
from unsupseg_cli.data.masks import cell_boxes, to_label_map, to_layers, to_masks

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
STACKS = SIZES.flatmap(
    lambda size: arrays.arrays(np.bool_, st.tuples(st.integers(0, 6), *map(st.just, size)))
)


@settings(max_examples=100, deadline=None)
@given(stack=STACKS)
def test_masks_come_back_whole_from_their_layers_however_they_overlap(stack):
    layers = to_layers(stack, stack.shape[1:])
    assert layers.dtype == np.int16
    np.testing.assert_array_equal(to_masks(layers, len(stack)), stack)
    deepest = stack.sum(0).max(initial=0)
    assert max(deepest, 1) <= len(layers) <= max(len(stack), 1)


def test_masks_that_do_not_overlap_are_a_label_map():
    stack = np.zeros((2, 3, 4), bool)
    stack[0, 0], stack[1, 2, 1:] = True, True
    np.testing.assert_array_equal(to_layers(stack, (3, 4)), [[[0, 0, 0, 0], [-1, -1, -1, -1], [-1, 1, 1, 1]]])
    assert (to_layers([], (3, 4)) == -1).all()
    assert to_layers([], (3, 4)).shape == (1, 3, 4)


@settings(max_examples=100, deadline=None)
@given(stack=STACKS, data=st.data())
def test_of_masks_that_overlap_the_higher_score_counts_then_the_smaller_area(stack, data):
    scores = st.sampled_from([0.25, 0.5, 1.0])
    score = np.array(data.draw(st.lists(scores, min_size=len(stack), max_size=len(stack))))
    area = stack.sum((1, 2))
    labels = to_label_map(to_layers(stack, stack.shape[1:]), score, area)
    for row, column in np.ndindex(labels.shape):
        here = np.flatnonzero(stack[:, row, column])
        best = min(here, key=lambda i: (-score[i], area[i], i)) if len(here) else -1
        assert labels[row, column] == best


@settings(max_examples=100, deadline=None)
@given(stack=STACKS)
def test_boxes_are_the_tightest_that_hold_each_mask(stack):
    boxes = cell_boxes(to_layers(stack, stack.shape[1:]), len(stack))
    for mask, (left, top, right, bottom) in zip(stack, boxes, strict=True):
        inside = np.zeros_like(mask)
        inside[top:bottom, left:right] = True
        assert not (mask & ~inside).any()
        if mask.any():
            assert mask[top].any()
            assert mask[bottom - 1].any()
            assert mask[:, left].any()
            assert mask[:, right - 1].any()
        else:
            assert (left, top, right, bottom) == (0, 0, 0, 0)


def test_more_masks_than_ids_are_refused(monkeypatch):
    monkeypatch.setattr(module, "MOST_MASKS", 3)
    with pytest.raises(ValueError, match="more than 3 masks"):
        to_layers(np.ones((4, 1, 1), bool), (1, 1))
