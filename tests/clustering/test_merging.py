"""Which classes are most alike."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unsupseg_cli.clustering.merging import merge_alike


def classes_of(directions, counts):
    """Return sums and counts of classes whose tokens all point in one direction, in degrees."""
    angles = np.deg2rad(directions)
    counts = np.array(counts)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * counts[:, None], counts


def test_the_most_alike_classes_become_one_first():
    sums, counts = classes_of([0, 80, 5, 120, 84], [10, 10, 10, 10, 10])
    assert merge_alike(sums, counts, 4) == [[0], [1, 4], [2], [3]]
    assert merge_alike(sums, counts, 3) == [[0, 2], [1, 4], [3]]
    assert merge_alike(sums, counts, 2) == [[0, 2], [1, 3, 4]]
    assert merge_alike(sums, counts, 1) == [[0, 1, 2, 3, 4]]


def test_a_group_is_as_far_as_the_mean_of_its_tokens():
    sums, counts = classes_of([0, 20, 45, 90], [1, 1000, 10, 10])
    assert merge_alike(sums, counts, 2) == [[0, 1, 2], [3]]


def test_classes_without_a_token_stay_as_long_as_there_is_room():
    sums, counts = classes_of([0, 0, 5, 90], [10, 0, 10, 10])
    assert merge_alike(sums, counts, 4) == [[0], [1], [2], [3]]
    assert merge_alike(sums, counts, 3) == [[0], [1, 3], [2]]  # goes along with the last
    assert merge_alike(sums, counts, 2) == [[0, 2], [1, 3]]


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 100))
def test_every_class_is_in_one_group_and_there_are_so_many(number, wanted, seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 3, number)
    counts[0] = 1
    groups = merge_alike(rng.normal(size=(number, 4)) * counts[:, None], counts, wanted)
    assert sorted(number for group in groups for number in group) == list(range(number))
    assert len(groups) == min(number, wanted)
