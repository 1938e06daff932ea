"""What segmentations tell about each other beyond the place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from unsupseg_cli.metrics.agreement import agreement, shared_information

SIDE, IMAGES = 16, 30


def noise(seed, classes=3):
    return np.random.default_rng(seed).integers(0, classes, (IMAGES, SIDE, SIDE)).astype(np.int16)


def quarters():
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] // (SIDE // 2)
    return np.broadcast_to(rows * 2 + columns, (IMAGES, SIDE, SIDE)).astype(np.int16)


def test_segmentations_that_divide_all_images_alike_tell_nothing():
    shared = shared_information(np.stack([quarters(), quarters(), noise(0)]))
    assert shared[0, 1] == pytest.approx(0, abs=1e-9)


def test_what_is_in_the_images_is_shared_whatever_the_classes_are_called():
    objects = noise(0)
    renamed = np.array([2, 0, 1], np.int16)[objects]
    shared = shared_information(np.stack([objects, renamed]))
    assert shared[0, 1] == pytest.approx(np.log(3), abs=0.02)  # all of it


def test_it_is_the_mean_over_places_of_the_mutual_information_there():
    maps = np.stack([noise(0), np.where(noise(1) > 0, noise(0), noise(2))])
    expected = np.mean(
        [
            mutual_info_score(
                maps[0][:, y : y + 2, x : x + 2].ravel(), maps[1][:, y : y + 2, x : x + 2].ravel()
            )
            for y in range(0, SIDE, 2)
            for x in range(0, SIDE, 2)
        ]
    )
    assert shared_information(maps)[0, 1] == pytest.approx(expected)


@given(st.permutations(range(4)), st.integers(0, 5))
def test_names_of_classes_and_order_do_not_matter(order, seed):
    first, second = noise(seed, 4), np.where(noise(seed + 1, 2) > 0, noise(seed, 4), 0).astype(np.int16)
    shared = shared_information(np.stack([first, second]))
    again = shared_information(np.stack([second, np.array(order, np.int16)[first]]))
    np.testing.assert_allclose(again, shared, atol=1e-9)
    assert (shared >= -1e-12).all()


def test_those_that_look_in_the_same_way_do_not_count_for_each_other():
    shared = np.array([[0, 9, 1], [9, 0, 2], [1, 2, 0]], float)
    np.testing.assert_allclose(agreement(shared, ["a", "a", "b"]), [1, 2, 1.5])
    np.testing.assert_allclose(agreement(shared, ["a", "a", "a"]), [5, 5.5, 1.5])
    np.testing.assert_allclose(agreement(np.zeros((1, 1)), ["a"]), [0])
