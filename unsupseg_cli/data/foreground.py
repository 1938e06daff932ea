"""Which cells lie on objects, and whether the masks of a collection are objects before a background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.core.labels import VOID

OBJECTS_BELOW = 0.62
"""Share at the border below which masks were objects before a background (docs/choices.md)."""


def foreground_cells(maps: Sequence[NDArray[np.int16]], grids: NDArray[np.int64]) -> list[Tensor]:
    """Return of each view the cells that are covered by masks for more than half, (h, w) bool.

    Args:
        maps: label maps of the masks, of any size.
        grids: rows and columns of each view, (V, 2).
    """
    cells = []
    for labels, (rows, columns) in zip(maps, grids, strict=True):
        covered = torch.from_numpy(labels != VOID).float()[None, None]
        cells.append(F.interpolate(covered, (int(rows), int(columns)), mode="area")[0, 0] > 0.5)
    return cells


class Foreground(NamedTuple):
    """The cells (h, w) of each view that masks cover, and how much of the border these are (`share_at_border`)."""

    cells: list[Tensor]
    share: float

    @property
    def anything(self) -> bool:
        """Whether masks cover a cell."""
        return any(bool(view.any()) for view in self.cells)

    @property
    def objects(self) -> bool:
        """Whether the masks are objects before a background."""
        return self.anything and self.share < OBJECTS_BELOW


def find_foreground(maps: Sequence[NDArray[np.int16]], grids: NDArray[np.int64]) -> Foreground:
    """Return what masks cover, see `foreground_cells` and `share_at_border`."""
    cells = foreground_cells(maps, grids)
    return Foreground(cells, share_at_border(cells))


def share_at_border(foregrounds: Sequence[Tensor]) -> float:
    """Return how much of the images' border the masks cover, over how much of the images: 1 for masks anywhere.

    Images without a mask do not count; without any in a collection it is 1.

    Args:
        foregrounds: cells that are covered, (h, w) bool each.
    """
    border, area = 0.0, 0.0
    for cells in foregrounds:
        inner = torch.zeros_like(cells)
        inner[1:-1, 1:-1] = True
        border += float(cells[~inner].float().mean())
        area += float(cells.float().mean())
    return border / area if area else 1.0
