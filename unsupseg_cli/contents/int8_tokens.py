"""Tokens as int8: of each view and channel a scale and a zero, so that every view stands by itself.

A value is ``zero + scale * code`` with codes from -127 to 127: ``zero`` is the middle of the channel's values in the
view, and ``scale`` is their range over 254. What is read differs from what was given by half a scale at most, and by
the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.artifacts.arrays import Array, RowReader
from unsupseg_cli.artifacts.grids import GridReader

SCALE, ZERO = "_scale", "_zero"
"""Suffixes of the arrays (views, C) float32 that lie beside the codes."""
_STEPS = 254  # from the least to the largest code


def encode(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes (B, h, w, C) int8 of values of as many views, and their scale and zero (B, C) float32.

    Values are finite, 2^126 at most.
    """
    values = values.float()
    low, high = values.amin((1, 2)), values.amax((1, 2))
    scale, zero = high / _STEPS - low / _STEPS, high / 2 + low / 2
    step = torch.where(scale > 0, scale, 1)  # equal values: their codes are 0
    codes = (values - zero[:, None, None]).div_(step[:, None, None]).round_()
    return codes.clamp_(-_STEPS / 2, _STEPS / 2).to(torch.int8), scale, zero


def decode(codes: Array, scale: Array, zero: Array) -> NDArray[np.float32]:
    """Return the values (..., C) that codes (..., C) with a scale and a zero (C,) stand for."""
    values = codes.astype(np.float32)
    values *= scale
    values += zero
    return values


class TokenReader(GridReader):
    """Reads grids of float values, which may be stored as int8.

    Raises:
        UnsupsegError: the array, or a scale or zero beside its codes, is damaged or not there.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        self._ranges = (
            [RowReader(folder / f"{name}{part}") for part in (SCALE, ZERO)] if self.dtype == np.int8 else []
        )

    def __getitem__(self, view: int) -> Array:
        """Return the grid (h, w, C) of one view."""
        return self._decode(super().__getitem__(view), view)

    def take(self, views: Sequence[int]) -> list[Array]:
        """Return the grids of several views."""
        if not self._ranges:
            return super().take(views)
        return [self[view] for view in views]

    def _decode(self, grid: Array, view: int) -> Array:
        if not self._ranges:
            return grid
        scale, zero = (reader.rows(view, view + 1)[0] for reader in self._ranges)
        return decode(grid, scale, zero)
