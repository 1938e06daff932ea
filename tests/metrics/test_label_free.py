"""Figures of segmentations that need no labels: what they tell about each other, and where their borders lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from unsupseg_cli.metrics.label_free import (
    agreement,
    alike,
    border_contrast,
    confirmed_information,
    criterion,
    told_by_place,
)

SIDE, IMAGES = 16, 30


def noise(seed, classes=3):
    return np.random.default_rng(seed).integers(0, classes, (IMAGES, SIDE, SIDE)).astype(np.int16)


def quarters():
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] // (SIDE // 2)
    return np.broadcast_to(rows * 2 + columns, (IMAGES, SIDE, SIDE)).astype(np.int16)


def test_segmentations_that_divide_all_images_alike_tell_nothing():
    confirmed = confirmed_information(np.stack([quarters(), quarters(), noise(0)]))
    assert confirmed[0, 1] == pytest.approx(0, abs=1e-9)


def test_what_is_in_the_images_is_confirmed_whatever_the_classes_are_called():
    objects = noise(0)
    renamed = np.array([2, 0, 1], np.int16)[objects]
    assert confirmed_information(np.stack([objects, renamed]))[0, 1] == pytest.approx(1)
    assert confirmed_information(np.stack([objects, noise(1)]))[0, 1] < 0.02


def test_it_is_the_information_at_each_place_over_what_the_first_tells_there():
    maps = np.stack([noise(0, 2), np.where(noise(1) > 0, noise(0, 2), noise(2))])
    cells = [
        (slice(None), slice(y, y + 2), slice(x, x + 2)) for y in range(0, SIDE, 2) for x in range(0, SIDE, 2)
    ]

    def mean(one, other):
        return np.mean(
            [mutual_info_score(maps[one][cell].ravel(), maps[other][cell].ravel()) for cell in cells]
        )

    confirmed = confirmed_information(maps)
    assert confirmed[0, 1] == pytest.approx(mean(0, 1) / mean(0, 0))
    assert confirmed[1, 0] == pytest.approx(mean(0, 1) / mean(1, 1))
    assert confirmed[1, 0] < confirmed[0, 1]  # it tells more that the other does not know


@given(st.permutations(range(4)), st.integers(0, 5))
def test_names_of_classes_and_order_do_not_matter(order, seed):
    first, second = noise(seed, 4), np.where(noise(seed + 1, 2) > 0, noise(seed, 4), 0).astype(np.int16)
    confirmed = confirmed_information(np.stack([first, second]))
    again = confirmed_information(np.stack([second, np.array(order, np.int16)[first]]))
    np.testing.assert_allclose(again, confirmed.T, atol=1e-9)
    assert (confirmed >= 0).all()
    assert (confirmed <= 1).all()


def test_those_that_look_in_the_same_way_do_not_count_for_each_other():
    confirmed = np.array([[0, 9, 1], [9, 0, 2], [1, 2, 0]], float)
    np.testing.assert_allclose(agreement(confirmed, ["a", "a", "b"]), [1, 2, 1.5])
    np.testing.assert_allclose(agreement(confirmed, ["a", "a", "a"]), [5, 5.5, 1.5])
    np.testing.assert_allclose(agreement(np.zeros((1, 1)), ["a"]), [0])


def test_those_that_divide_images_alike_count_as_one():
    confirmed = np.array([[0, 9, 1, 4], [9, 0, 1, 4], [1, 1, 0, 2], [4, 4, 2, 0]], float)
    looks = ["a", "b", "c", "d"]
    np.testing.assert_allclose(agreement(confirmed, looks, [0, 0, 2, 3]), [2.5, 2.5, 1.5, 3])
    np.testing.assert_allclose(agreement(confirmed, ["a", "b", "b", "d"], [0, 0, 2, 3]), [4, 4, 2, 3])
    np.testing.assert_allclose(agreement(confirmed, looks, [0, 0, 0, 0]), [14 / 3, 14 / 3, 4 / 3, 10 / 3])
    np.testing.assert_allclose(agreement(confirmed, looks, [0, 1, 2, 3]), agreement(confirmed, looks))


@given(st.integers(0, 2**20), st.permutations(range(4)))
def test_other_names_of_classes_divide_images_alike(seed, order):
    first, other = noise(seed, 4), noise(seed + 1, 4)
    renamed = np.array(order, np.int16)[first]
    nearly, changed = renamed.copy(), renamed.copy()
    nearly.ravel()[: nearly.size // 200] = 0
    changed.ravel()[: changed.size // 10] = 0
    assert alike(np.stack([first, other, renamed, nearly, changed])) == [0, 1, 0, 0, 4]


def test_a_segmentation_of_one_class_tells_nothing():
    confirmed = confirmed_information(np.stack([np.zeros_like(noise(0)), noise(0)]))
    np.testing.assert_array_equal(confirmed, 0)


def test_borders_where_colours_change_have_more_contrast_than_others():
    objects = noise(0, 2)
    images = np.random.default_rng(1).integers(0, 30, (*objects.shape, 3)) + 200 * objects[..., None]
    images = images.astype(np.uint8)
    right, shifted = border_contrast(objects, images), border_contrast(np.roll(objects, 5, 0), images)
    assert right > 5
    assert shifted == pytest.approx(1, abs=0.1)
    assert border_contrast(np.zeros_like(objects), images) == 1
    assert border_contrast(objects, np.zeros_like(images)) == 1


def test_place_tells_all_of_quarters_and_nothing_of_what_lies_anywhere():
    assert told_by_place(quarters()) == pytest.approx(1)
    assert told_by_place(noise(0)) < 0.2  # of few cells at each place
    assert told_by_place(np.zeros_like(noise(0))) == 0


def test_the_criterion_asks_for_all_and_forgives_place_where_images_have_one():
    figures = np.array([[2.0, 0.5, 0.9], [1.0, 0.9, 0.0], [2.0, 0.1, 0.0]]).T
    assert criterion(*figures, has_place=True).tolist() == [1.0, 0.9, 0.2]
    np.testing.assert_allclose(criterion(*figures, has_place=False), [0.01, 0.9, 0.2])
