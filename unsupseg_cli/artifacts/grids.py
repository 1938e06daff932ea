"""Grids on disk: an array with one grid (h, w, ...) per view, regular or ragged behind one reader."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unsupseg_cli.artifacts.arrays import (
    SHARD_BYTES,
    Array,
    RaggedWriter,
    RegularWriter,
    RowReader,
    has_array,
    rows_per_shard,
    write_array,
)
from unsupseg_cli.artifacts.damage import MEND
from unsupseg_cli.core.errors import UnsupsegError


class GridWriter:
    """Writes one grid per view; regular when all grids are equal, ragged else.

    Args:
        folder: the draft's folder; the array is ``folder/name``.
        name: the array's name, for example ``patch``.
        grids: (N, 2) rows and columns of each view.
        channels: trailing shape of a cell, () for label maps.
        dtype: type of a cell's values.
        views_per_block: how many views one `write` brings (the last one may be shorter).
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        grids: NDArray[np.int64],
        channels: Sequence[int],
        dtype: DTypeLike,
        views_per_block: int,
    ) -> None:
        self._folder, self._name, self._grids = folder, name, grids
        self._views_per_block = views_per_block
        self.regular = bool((grids == grids[:1]).all())
        if self.regular:
            shape = (*map(int, grids[0]), *channels)
            self._regular = RegularWriter(folder / name, len(grids), shape, dtype, views_per_block)
        else:
            self._ragged = RaggedWriter(folder / name)

    def write(self, block: int, rows: Sequence[Array] | Array) -> None:
        """Write the grids of one block of views, in order."""
        if self.regular:
            self._regular.write(block * self._views_per_block, np.asarray(rows))
        else:
            self._ragged.write(block, np.concatenate([row.reshape(-1, *row.shape[2:]) for row in rows]))

    def file(self, block: int) -> Path:
        """Return the file that holds a block."""
        return self._regular.file(block * self._views_per_block) if self.regular else self._ragged.file(block)

    def close(self) -> None:
        """Finish the array; a ragged one gets its offsets and grids beside it."""
        if not self.regular:
            self._ragged.close()
            cells = self._grids.prod(1)
            write_array(self._folder / f"{self._name}_offset", np.concatenate([[0], np.cumsum(cells)]))
            write_array(self._folder / f"{self._name}_grid", self._grids.astype(np.int64))


def views_per_block(grids: NDArray[np.int64], channels: Sequence[int], dtype: DTypeLike) -> int:
    """Return how many views make a block (a shard of a regular array) of about `SHARD_BYTES`."""
    largest = (*map(int, grids[grids.prod(1).argmax()]), *channels)
    return min(rows_per_shard(largest, dtype, len(grids)), _BLOCK_VIEWS)


# A kill loses at most one block of work: with small views 64 MiB would be many minutes of a backbone.
_BLOCK_VIEWS = 64


def array_bytes(grids: NDArray[np.int64], channels: Sequence[int], dtype: DTypeLike) -> int:
    """Return the exact size of the array's values in bytes."""
    return int(grids.prod(1).sum()) * math.prod(channels) * np.dtype(dtype).itemsize


def bytes_needed(grids: NDArray[np.int64], channels: Sequence[int], dtype: DTypeLike) -> int:
    """Return what must be free to write the array: its size, and for a ragged one that twice."""
    size = array_bytes(grids, channels, dtype)
    regular = bool((grids == grids[:1]).all())
    return size if regular else 2 * size + 2 * SHARD_BYTES


class GridReader:
    """Reads grids by view, whether the array is regular or ragged.

    Raises:
        UnsupsegError: the array is damaged or not there.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._rows = RowReader(folder / name)
        offsets = folder / f"{name}_offset"
        self.regular = not has_array(offsets)
        if not self.regular:
            self._offset = RowReader(offsets).rows(0, len(RowReader(offsets)))
            self.grids = RowReader(folder / f"{name}_grid").rows(0, len(self._offset) - 1)
            cells = np.concatenate([[0], np.cumsum(self.grids.prod(1))])
            if not np.array_equal(self._offset, cells) or cells[-1] != len(self._rows):
                raise UnsupsegError(f"The array '{offsets}' does not fit the grids beside it; {MEND}")
        else:
            n, h, w = self._rows.shape[:3]
            self.grids = np.tile(np.array([[h, w]], np.int64), (n, 1))
        self.channels = self._rows.shape[3:] if self.regular else self._rows.shape[1:]
        self.dtype = self._rows.dtype

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, view: int) -> Array:
        """Return the grid (h, w, ...) of one view."""
        if self.regular:
            return np.asarray(self._rows.rows(view, view + 1)[0])
        start, stop = int(self._offset[view]), int(self._offset[view + 1])
        h, w = self.grids[view]
        return np.asarray(self._rows.rows(start, stop).reshape(h, w, *self.channels))

    def take(self, views: Sequence[int]) -> list[Array]:
        """Return the grids of several views."""
        if self.regular:
            return list(self._rows.take(views))
        return [self[view] for view in views]
