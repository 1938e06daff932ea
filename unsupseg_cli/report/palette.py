"""Class colours: distinct, the same on every machine, the same for every number of classes."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID

DISTINCT = 256
"""Colours that are all different; further classes repeat them darker and lighter."""

VOID_COLOR = (0, 0, 0)
UNMATCHED_COLOR = (110, 110, 110)
"""A predicted cluster that stands for no class; grays are in no palette."""

PALETTE_VOID = 255
"""Void in an 8-bit label map (up to 255 classes)."""

WIDE_VOID = 65535
"""Void in a 16-bit label map (more than 255 classes)."""


def class_colors(n: int) -> NDArray[np.uint8]:
    """Return colours (n, 3) uint8 RGB; class i has the same colour for every n.

    Each colour is the one farthest, in the perceptual space OKLab, from all before it and from void, white
    and gray. Beyond 256 they repeat at other lightnesses.

    Raises:
        UsageError: n is negative.
    """
    if n < 0:
        raise UsageError(f"The number of colours must not be negative, got {n}.")
    base = _distinct_colors()
    rounds = [base]
    for cycle in range(1, -(-n // DISTINCT)):
        weight = 0.7 * (1 - 0.5 ** ((cycle + 1) // 2))
        goal = 0.0 if cycle % 2 else 255.0
        rounds.append(np.round(base + weight * (goal - base)).astype(np.uint8))
    return np.concatenate(rounds)[:n].copy()


def paletted(labels: ArrayLike, colors: NDArray[np.uint8]) -> Image.Image:
    """Return a label map (H, W) of integers as a palette image whose pixel values are the class ids.

    Up to 255 classes: mode "P", void (-1) is index 255. More: mode "I;16" without colours, void is 65535.

    Raises:
        UsageError: a label is neither VOID nor in [0, len(colors)), or there are more than 65,535 classes.
    """
    ids = np.asarray(labels)
    check_labels(ids, len(colors))
    if len(colors) > WIDE_VOID:
        raise UsageError(f"A label map holds at most {WIDE_VOID} classes, got {len(colors)}.")
    if len(colors) > PALETTE_VOID:
        return Image.fromarray(np.where(ids == VOID, WIDE_VOID, ids).astype(np.uint16))
    image = Image.fromarray(np.where(ids == VOID, PALETTE_VOID, ids).astype(np.uint8))
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    table[PALETTE_VOID] = VOID_COLOR
    image.putpalette(table.tobytes())
    return image


def check_labels(labels: NDArray[np.generic], classes: int) -> None:
    """Raise UsageError unless labels (H, W) are integers that are VOID or in [0, classes)."""
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise UsageError(f"A label map is (H, W) of integers, found {labels.dtype} of shape {labels.shape}.")
    if labels.size and (int(labels.min()) < VOID or int(labels.max()) >= classes):
        raise UsageError(
            f"A label map holds values from {int(labels.min())} to {int(labels.max())}, expected 0 to "
            f"{classes - 1}, or {VOID} for void."
        )


@cache
def _distinct_colors() -> NDArray[np.uint8]:
    """Return 256 colours by farthest-point choice among saturated RGB colours of middle lightness."""
    levels = np.linspace(0, 255, 22).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _oklab(grid)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] > 0.43) & (lab[:, 0] < 0.93) & (chroma > 0.055) & (chroma < 0.21)
    grid, lab = grid[usable], lab[usable]
    neutral = _oklab(np.array([VOID_COLOR, UNMATCHED_COLOR, (255, 255, 255)], np.float64))
    start = int(np.abs(grid - np.array([40, 120, 220])).sum(1).argmin())
    nearest = np.linalg.norm(lab[:, None] - neutral, axis=-1).min(1)
    chosen = [start]
    while len(chosen) < DISTINCT:
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[chosen[-1]], axis=-1))
        chosen.append(int(nearest.argmax()))
    return grid[chosen].astype(np.uint8)


def _oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sRGB (n, 3) in [0, 255] as OKLab (n, 3) (B. Ottosson, "A perceptual color space", 2020)."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    lms = np.cbrt(
        linear
        @ np.array(
            [
                [0.4122214708, 0.2119034982, 0.0883024619],
                [0.5363325363, 0.6806995451, 0.2817188376],
                [0.0514459929, 0.1073969566, 0.6299787005],
            ]
        )
    )
    lab: NDArray[np.float64] = lms @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )
    return lab
