"""Whether what images show depends on the place: sky above and road below, or the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item, spread

ENOUGH_IMAGES = 8
"""Fewer images do not tell."""
SIDE = 8
"""Cells of an image's side."""
LEAST_SHARE = 0.05
"""Of the colours' variance within images, that place tells where it matters (`benchmarks/placement.py`)."""
_IMAGES = 200  # that are looked at


def place_in_colors(items: Sequence[Item], reporter: Reporter) -> float | None:
    """Return which share of the colours' variance within images place tells, at most 1; None for too few images.

    Around 0, and below it by chance, in aerial images; 0.7 in frames of one car's camera.
    """
    looked_at, colors = spread(items, _IMAGES), []
    for item in reporter.track(looked_at, "colours by place", total=len(looked_at)):
        try:
            image = Image.fromarray(read_image(item.image, item.reading))
        except UnsupsegError:  # said where the image is embedded
            continue
        colors.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64))
    return explained_by_place(np.stack(colors)) if len(colors) >= ENOUGH_IMAGES else None


def explained_by_place(maps: NDArray[np.float64]) -> float:
    """Return the share of the variance within images that is common to them all, 1 at most.

    Without bias by the number of images: 0 in the mean for values that do not depend on the place.

    Args:
        maps: (N, h, w, C), colours say, of at least two images.
    """
    count = len(maps)
    within = maps - maps.mean((1, 2), keepdims=True)
    total, common = np.square(within).mean(), np.square(within.mean(0)).mean()
    if total == 0:
        return 0.0
    return float((common - total / count) / (1 - 1 / count) / total)
