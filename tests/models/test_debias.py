"""Tokens without the directions of their place: `extract --debias`."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.models.backbone import load_backbone


def tokens_of(backbone, image, keep=("patch", "cls", "pooled")):
    return backbone(backbone.normalise(torch.tensor(image[None])), keep=keep)


def differing_by_place(tokens: torch.Tensor) -> float:
    """Return how far unit tokens (h, w, C) of an image lie from their mean."""
    unit = F.normalize(tokens, dim=-1)
    return float((unit - unit.mean((0, 1))).square().sum(-1).mean())


@pytest.mark.parametrize("layer", [-1, -3, (-1, -3)])
def test_a_picture_of_nothing_has_the_same_tokens_everywhere(layer):
    plain, debiased = load_backbone("tiny", layer=layer), load_backbone("tiny", layer=layer, debias=20)
    for value, sides in ((0, (256, 256)), (0, (160, 320)), (90, (256, 256))):
        image = np.full((*sides, 3), value, np.uint8)
        before = differing_by_place(tokens_of(plain, image)["patch"][0])
        after = differing_by_place(tokens_of(debiased, image)["patch"][0])
        assert after < (0.3 if value == 0 else 0.6) * before, (value, sides)


def test_what_is_left_of_tokens_is_theirs_less_the_directions():
    plain, debiased = load_backbone("tiny"), load_backbone("tiny", debias=7)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    before, after = tokens_of(plain, image), tokens_of(debiased, image)
    directions = debiased.directions
    torch.testing.assert_close(directions @ directions.T, torch.eye(7), atol=1e-5, rtol=0)
    taken = (before["patch"] @ directions.T) @ directions
    torch.testing.assert_close(after["patch"], before["patch"] - taken)
    torch.testing.assert_close(after["pooled"], F.normalize(after["patch"].flatten(1, 2).mean(1), dim=-1))
    torch.testing.assert_close(after["cls"], before["cls"])


@pytest.mark.parametrize(("count", "message"), [(192, "outside 0 to 191"), (-1, "outside 0 to 191")])
def test_as_many_directions_as_channels_are_refused(count, message):
    with pytest.raises(UsageError, match=message):
        load_backbone("tiny", debias=count)
