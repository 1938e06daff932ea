"""Tokens as colours: like tokens have like colours, whatever their number of channels."""

import numpy as np
import pytest

from unsupseg_cli.report.token_colors import token_colors


@pytest.mark.parametrize("channels", [1, 2, 3, 16])
def test_equal_tokens_have_one_colour_in_all_pictures_and_others_another(channels):
    kinds = np.random.default_rng(0).normal(size=(4, channels)).astype(np.float32)
    numbers = [np.arange(12).reshape(3, 4) % 4, np.arange(10).reshape(2, 5) % 3]
    pictures = token_colors([kinds[one] for one in numbers])
    assert [(picture.shape, picture.dtype) for picture in pictures] == [
        ((3, 4, 3), np.uint8),
        ((2, 5, 3), np.uint8),
    ]
    colors = {}
    for one, picture in zip(numbers, pictures, strict=True):
        for number, color in zip(one.ravel().tolist(), picture.reshape(-1, 3).tolist(), strict=True):
            assert colors.setdefault(number, color) == color
    assert len({tuple(color) for color in colors.values()}) == 4


def test_tokens_that_are_all_alike_have_one_colour():
    (picture,) = token_colors([np.full((2, 3, 8), 0.5, np.float32)])
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1
