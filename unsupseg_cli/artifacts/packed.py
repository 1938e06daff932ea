"""Arrays of a shape of their own for each view, one compressed piece per view: label maps, masks, soft maps.

The pieces are Blosc frames, which tell their own codec, one after the other in the bytes array ``name``; beside it lie
``name_offset`` (N + 1) and ``name_shape`` (N, axes). Label maps hardly vary along a row, so that byte-wise LZ4 shrinks
them fifty-fold and is read as quickly as a copy; of floats the bits of equal weight are put together first.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numcodecs import blosc
from numpy.typing import DTypeLike

from unsupseg_cli.artifacts.arrays import Array, RaggedWriter, RowReader, has_array, write_array
from unsupseg_cli.artifacts.damage import MEND
from unsupseg_cli.core.errors import UnsupsegError

blosc.use_threads = False  # a piece is small: threads would cost more than they bring

_WHOLE = blosc.Blosc("lz4hc", clevel=9, shuffle=blosc.NOSHUFFLE)
_CODECS = {
    "i": _WHOLE,
    "u": _WHOLE,
    "f": blosc.Blosc("zstd", clevel=5, shuffle=blosc.BITSHUFFLE),
}
_LENGTHS = struct.Struct(
    "<4xI4xI"
)  # header of a Blosc frame: flags, bytes of the values, of a block, of the frame


def is_packed(folder: Path, name: str) -> bool:
    """Tell whether an array of a folder is there in this form."""
    return has_array(folder / f"{name}_shape")


class PackedWriter:
    """Writes one array per view, block by block; blocks survive a kill.

    Args:
        folder: the draft's folder.
        name: of the array.
        dtype: of its values, whole numbers or floats.
    """

    def __init__(self, folder: Path, name: str, dtype: DTypeLike) -> None:
        self._folder, self._name, self._dtype = folder, name, np.dtype(dtype)
        self._pieces = RaggedWriter(folder / name)

    def write(self, block: int, arrays: Sequence[Array]) -> list[list[int]]:
        """Write the arrays of one block of views, in order; return what `close` must be told of each."""
        codec = _CODECS[self._dtype.kind]
        pieces = [codec.encode(np.ascontiguousarray(array, self._dtype)) for array in arrays]
        self._pieces.write(block, np.frombuffer(b"".join(pieces), np.uint8))
        return [[len(piece), *array.shape] for piece, array in zip(pieces, arrays, strict=True)]

    def file(self, block: int) -> Path:
        """Return the file that holds a block."""
        return self._pieces.file(block)

    def close(self, told: Sequence[Sequence[int]]) -> None:
        """Join the blocks; ``told`` is what `write` returned, of all views in their order."""
        self._pieces.close()
        index = np.array(told, np.int64)
        write_array(self._folder / f"{self._name}_offset", np.concatenate([[0], np.cumsum(index[:, 0])]))
        write_array(self._folder / f"{self._name}_shape", index[:, 1:])


class PackedReader:
    """Reads such arrays by view.

    Raises:
        UnsupsegError: the array is damaged or not there.
    """

    def __init__(self, folder: Path, name: str, dtype: DTypeLike) -> None:
        self._path, self._dtype = folder / name, np.dtype(dtype)
        self._pieces = RowReader(self._path)
        offset, shape = RowReader(folder / f"{name}_offset"), RowReader(folder / f"{name}_shape")
        self._offset, self._shape = offset.rows(0, len(offset)), shape.rows(0, len(shape))
        if len(self._offset) != len(self) + 1 or self._offset[-1] != len(self._pieces):
            raise UnsupsegError(f"The array '{self._path}' does not fit the offsets beside it; {MEND}")

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, view: int) -> Array:
        """Return the array of one view."""
        # Of what follows the last view there is no second offset: an IndexError ends an iteration.
        start, stop = int(self._offset[view]), int(self._offset[view + 1])
        piece = self._pieces.peek(start, stop)
        out = np.empty(self._shape[view], self._dtype)
        try:
            if _LENGTHS.unpack_from(piece.data) != (out.nbytes, len(piece)):
                raise ValueError("its length is another")
            blosc.decompress(piece, out)
        except (ValueError, RuntimeError, struct.error) as error:
            raise UnsupsegError(
                f"The array '{self._path}' cannot be decoded at view {view} ({error}); {MEND}"
            ) from None
        return out
