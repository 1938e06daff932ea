import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unsupseg_cli.data.placement import explained_by_place


def images(count, common, own, seed=0):
    """Return images (N, 8, 8, 3) of one common picture and one of each, with these deviations."""
    draw = np.random.default_rng(seed)
    return common * draw.normal(size=(8, 8, 3)) + own * draw.normal(size=(count, 8, 8, 3))


@pytest.mark.parametrize(("common", "own", "share"), [(1, 0, 1.0), (0, 1, 0.0), (1, 1, 0.5), (1, 2, 0.2)])
@pytest.mark.parametrize("count", [8, 100])
def test_the_share_is_that_of_the_common_picture(common, own, share, count):
    found = np.mean([explained_by_place(images(count, common, own, seed)) for seed in range(20)])
    assert found == pytest.approx(share, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-100, 100))
def test_brightness_and_contrast_of_all_images_change_nothing(seed, contrast, brightness):
    some = images(9, 1, 1, seed)
    assert explained_by_place(contrast * some + brightness) == pytest.approx(explained_by_place(some))
    shifted = some + np.random.default_rng(seed).normal(size=(9, 1, 1, 3))  # each image its own light
    assert explained_by_place(shifted) == pytest.approx(explained_by_place(some))


def test_images_of_one_colour_each_have_no_place():
    assert explained_by_place(np.ones((9, 8, 8, 3)) * np.arange(9)[:, None, None, None]) == 0
