"""How much of what images show the place tells, as a backbone sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item, spread
from unsupseg_cli.data.placement import ENOUGH_IMAGES, SIDE, explained_by_place
from unsupseg_cli.models.backbone import Backbone

DIRECTIONS = 20
"""Directions of place that are taken out of the tokens where it does not matter; 5 to 50 do nearly the same."""
LEAST_SHARE = 0.28
"""Of the tokens' variance within images, that place still tells where it matters (`benchmarks/placement.py`)."""
IMAGES = 32
"""Images that are looked at; of those of one set the share differs by 0.01 to 0.02 (standard deviation)."""


@torch.inference_mode()
def place_in_tokens(
    backbone: Backbone, items: Sequence[Item], device: torch.device, reporter: Reporter, images: int = IMAGES
) -> float | None:
    """Return which share of the variance of tokens within images place tells, at most 1; None for too few images.

    Of a backbone without the directions of its places (``debias``) it is what images have in common: 0.2 where they
    show the same everywhere, as those from above, 0.5 and more in frames of a street or of one person each.
    """
    side, looked_at = 2 * SIDE * backbone.patch_size, spread(items, images)
    pictures = reporter.track(_pictures(looked_at, side), "tokens by place", total=len(looked_at))
    maps = []
    for picture in pictures:
        if picture is not None:
            image = torch.from_numpy(picture)[None].to(device)
            tokens = backbone(backbone.normalise(image), keep=("patch",))["patch"]
            cells = F.avg_pool2d(F.normalize(tokens.float(), dim=-1).movedim(-1, 1), 2)
            maps.append(cells[0].movedim(0, -1).double().cpu().numpy())
    return explained_by_place(np.stack(maps)) if len(maps) >= ENOUGH_IMAGES else None


def _pictures(items: Sequence[Item], side: int) -> Iterator[NDArray[np.uint8] | None]:
    """Yield images squashed to (side, side, 3), None for one that cannot be read: that is said where it is embedded."""
    for item in items:
        try:
            image = Image.fromarray(read_image(item.image, item.reading))
        except UnsupsegError:
            yield None
            continue
        yield np.array(image.resize((side, side), Image.Resampling.BILINEAR))
