"""Parts of an image, as fractions of it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, as fractions of it; mirrored if right is less than left."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def mirrored(box: Box) -> Box:
    """Return the box of what a mirror image shows: it runs from right to left."""
    left, top, right, bottom = box
    return right, top, left, bottom


def places(box: Box, height: int, width: int, device: torch.device) -> Tensor:
    """Return x and y (height, width, 2) of the cells of a part of an image: in the whole image, from -1 to 1."""
    left, top, right, bottom = box
    x, y = (
        2 * (low + (high - low) * (torch.arange(cells, device=device) + 0.5) / cells) - 1
        for low, high, cells in ((left, right, width), (top, bottom, height))
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def place_maps(maps: Tensor, boxes: NDArray[np.float64], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return maps of regions at their places on a grid (M, K, h, w), and where those are (M, 1, h, w).

    Args:
        maps: of each region, (M, K, h', w').
        boxes: left, top, right, bottom as shares of the grid's sides, (M, 4).
        grid: rows and columns.
    """
    left, top, right, bottom = torch.from_numpy(boxes).float().T[:, :, None]
    y, x = ((torch.arange(cells) + 0.5) / cells for cells in grid)
    across, down = 2 * (x - left) / (right - left) - 1, 2 * (y - top) / (bottom - top) - 1  # (M, w), (M, h)
    size = (len(maps), *grid)
    places = torch.stack([across[:, None, :].expand(size), down[:, :, None].expand(size)], -1)
    there = (places.abs() <= 1).all(-1)[:, None]
    placed = F.grid_sample(maps, places.to(maps.device), padding_mode="border", align_corners=False)
    return placed, there.to(maps.device)
