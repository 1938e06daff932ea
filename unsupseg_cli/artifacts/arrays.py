"""Array stores: one row per view, in zarr v3 with sharding or in one HDF5 file, read by mapping the files.

A *regular* array has one shape for every view, (N, ...); its chunk is one view, a shard holds many, and
chunks are not compressed (float tokens hardly shrink), so that a reader may map the shard files into memory.
A *ragged* array (native aspect ratios) keeps the tokens of all views one after the other, (T, C), with
``offset`` (N+1) and ``grid`` (N, 2); padding is never stored.

Arrays are always written as zarr, whose shards are separate files that survive a kill. `pack_hdf5` turns the
finished arrays of a folder into one file; a reader is given ``folder/name`` and finds the array in either.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import google_crc32c
import numpy as np
from numpy.typing import DTypeLike, NDArray

from unsupseg_cli.artifacts.damage import MEND
from unsupseg_cli.core.errors import UnsupsegError

if TYPE_CHECKING:  # half a second of imports, which calls that reuse an artifact do without
    import h5py
    import zarr

HDF5 = "arrays.h5"
SHARD_BYTES = 64 << 20
_RAGGED_CHUNK = 256  # tokens; a multiple of it is one shard
_INDEX_ENTRY = 16  # bytes of one (offset, length) pair in a zarr v3 shard index
_CHECKSUM = 4  # bytes of the crc32c behind the index
_EMPTY = 2**64 - 1  # offset of a chunk that was never written

Array = NDArray[Any]


def rows_per_shard(row_shape: Sequence[int], dtype: DTypeLike, rows: int) -> int:
    """Return how many rows of a regular array make a shard of about `SHARD_BYTES`."""
    row = max(1, math.prod(row_shape) * np.dtype(dtype).itemsize)
    return max(1, min(rows, SHARD_BYTES // row))


def create_array(
    path: Path, shape: Sequence[int], dtype: DTypeLike, chunk: Sequence[int], shard: Sequence[int]
) -> zarr.Array[Any]:
    """Create a zarr v3 array without compression; ``shard`` is a multiple of ``chunk`` on every axis."""
    import zarr

    return zarr.create_array(
        path,
        shape=tuple(shape),
        dtype=np.dtype(dtype),
        chunks=tuple(chunk),
        shards=tuple(shard),
        compressors=None,
        filters=None,
        fill_value=0,
        zarr_format=3,
        overwrite=False,
        config={"write_empty_chunks": True},  # a shard of zeros is data: a missing file is always damage
    )


class RegularWriter:
    """Writes a regular array shard by shard; finished shards survive a kill."""

    def __init__(self, path: Path, rows: int, row_shape: Sequence[int], dtype: DTypeLike, shard: int) -> None:
        self.path, self.shard = path, shard
        begun = _begun(path, (rows, *row_shape), dtype)
        if begun is None:
            shutil.rmtree(path, ignore_errors=True)
            begun = create_array(path, (rows, *row_shape), dtype, (1, *row_shape), (shard, *row_shape))
        self.array: zarr.Array[Any] = begun

    def write(self, first: int, rows: Array) -> None:
        """Write whole shards: ``first`` is a multiple of the shard, ``rows`` (n, ...) fills it."""
        self.array[first : first + len(rows)] = rows

    def file(self, first: int) -> Path:
        """Return the file of the shard that begins with a row."""
        return self.path.joinpath("c", str(first // self.shard), *["0"] * (self.array.ndim - 1))


def _begun(path: Path, shape: Sequence[int], dtype: DTypeLike) -> zarr.Array[Any] | None:
    """Return the array that an interrupted call began, if it is of this shape and can be read."""
    try:
        import zarr

        array = zarr.open_array(path, mode="r+").with_config({"write_empty_chunks": True})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return array if array.shape == tuple(shape) and array.dtype == np.dtype(dtype) else None


def write_array(path: Path, values: Array) -> None:
    """Write a small array whole, in place of what a killed call left; chunks are rows, shards `SHARD_BYTES`."""
    _write_rows(path, values.shape, values.dtype, [values])


def write_rows(path: Path, blocks: Sequence[Path]) -> None:
    """Write the rows of ``.npy`` files, one after the other, as `write_array` does; memory holds a shard."""
    heads = [np.load(block, mmap_mode="r", allow_pickle=False) for block in blocks]
    shape, dtype = (sum(len(head) for head in heads), *heads[0].shape[1:]), heads[0].dtype
    del heads
    _write_rows(path, shape, dtype, (np.load(block, allow_pickle=False) for block in blocks))


def _write_rows(path: Path, shape: Sequence[int], dtype: np.dtype[Any], blocks: Iterable[Array]) -> None:
    shutil.rmtree(path, ignore_errors=True)
    shard = rows_per_shard(shape[1:], dtype, max(1, shape[0]))
    chunk = 1 if len(shape) > 1 else shard
    array = create_array(path, shape, dtype, (chunk, *shape[1:]), (shard, *shape[1:]))
    for first, rows in _regroup(blocks, shard):
        if chunk == 1:
            _write_shard(path, first // shard, rows, shard)
        else:
            array[first : first + len(rows)] = rows


def _write_shard(path: Path, number: int, rows: Array, size: int) -> None:
    """Write a shard of ``size`` chunks of one row each, the same bytes that zarr writes.

    Zarr takes 0.3 ms for every chunk, which is longer than a fast device needs to make the row.
    """
    length = rows[0].nbytes
    index = np.full((size, 2), _EMPTY, "<u8")
    index[: len(rows), 0] = np.arange(len(rows)) * length
    index[: len(rows), 1] = length
    file = path.joinpath("c", str(number), *["0"] * (rows.ndim - 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(np.ascontiguousarray(rows).data)
        out.write(index.data)
        out.write(google_crc32c.value(index.tobytes()).to_bytes(_CHECKSUM, "little"))


class Rows(Protocol):
    """Rows of an array in one of the stores."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self, start: int, stop: int) -> Array:
        """Return rows [start, stop) as a new array."""

    def peek(self, start: int, stop: int) -> Array:
        """Return rows [start, stop), without a copy where they lie in one piece."""


class RowReader:
    """Reads rows of the array ``folder/name``, in whichever store it lies.

    Raises:
        UnsupsegError: the array is damaged or not there.
    """

    def __init__(self, path: Path) -> None:
        packed = path.parent / HDF5
        self._rows: Rows = _HDF5Rows(packed, path.name) if packed.exists() else _ZarrRows(path)
        self.shape, self.dtype = self._rows.shape, self._rows.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> Array:
        """Return rows [start, stop) as a new array."""
        return self._rows.rows(start, stop)

    def peek(self, start: int, stop: int) -> Array:
        """Return rows [start, stop) to be read at once: where they lie, if that is in one piece, else a new array."""
        return self._rows.peek(start, stop)

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Array:
        """Return the rows at ``indices`` (any order, repeats allowed) as a new array."""
        out = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for position, index in enumerate(indices):
            out[position] = self.rows(int(index), int(index) + 1)[0]
        return out


def has_array(path: Path) -> bool:
    """Tell whether the array ``folder/name`` is there, in either store."""
    packed = path.parent / HDF5
    if not packed.exists():
        return path.exists()
    with _open_hdf5(packed) as file:
        return path.name in file


def pack_hdf5(folder: Path) -> list[Path]:
    """Copy the zarr arrays right below a folder into its file ``arrays.h5``; return the arrays' own folders.

    Each array is a data set of the same name, contiguous and not compressed, so that it can be mapped; equal
    arrays give equal bytes.
    """
    arrays = sorted(path.parent for path in folder.glob("[!.]*/zarr.json"))
    partial = folder / f".{HDF5}"
    import h5py

    with h5py.File(partial, "w", libver="v110") as file:
        for path in arrays:
            reader = _ZarrRows(path)
            data = file.create_dataset(path.name, reader.shape, reader.dtype, track_times=False)
            step = rows_per_shard(reader.shape[1:], reader.dtype, len(data))
            for start in range(0, len(data), step):
                data[start : start + step] = reader.rows(start, min(start + step, len(data)))
    partial.replace(folder / HDF5)
    return arrays


def _open_zarr(path: Path) -> zarr.Array[Any]:
    import zarr

    array: zarr.Array[Any] = zarr.open_array(path, mode="r")
    return array


def _open_hdf5(path: Path) -> h5py.File:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UnsupsegError(f"The file '{path}' cannot be opened ({error}); {MEND}") from None


class _HDF5Rows:
    """Maps a contiguous data set of an HDF5 file; others (of somebody else) are read through h5py."""

    def __init__(self, path: Path, name: str) -> None:
        import h5py

        file = _open_hdf5(path)
        if name not in file:
            raise UnsupsegError(f"The file '{path}' has no array '{name}'; {MEND}")
        link = file.get(name, getlink=True)
        self._data: Any = file[name] if isinstance(link, h5py.HardLink) else None
        if not isinstance(self._data, h5py.Dataset) or self._data.external or self._data.is_virtual:
            raise UnsupsegError(
                f"The array '{name}' of '{path}' lies in another file or is none, and nothing beside the artifact is "
                f"read; {MEND}"
            )
        self.shape: tuple[int, ...] = tuple(self._data.shape)
        self.dtype: np.dtype[Any] = self._data.dtype
        offset = self._data.id.get_offset()  # None where the data are chunked, or there are none
        if offset is not None:
            self._data = np.memmap(path, self.dtype, "r", offset, self.shape)
            file.close()

    def rows(self, start: int, stop: int) -> Array:
        return np.array(self._data[start:stop])

    def peek(self, start: int, stop: int) -> Array:
        return np.asarray(self._data[start:stop])


class _ZarrRows:
    """Maps the shard files of a zarr array: no decompression, no fancy indexing.

    Falls back to zarr where the array is compressed or laid out in another way.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._array = _open_zarr(path)
        except (OSError, ValueError, KeyError) as error:
            raise UnsupsegError(f"The array '{path}' cannot be opened ({error}); {MEND}") from None
        self._path = path
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        self.dtype: np.dtype[Any] = np.dtype(self._array.dtype)
        self._chunk = self._array.chunks[0]
        shards = self._array.shards
        self._shard = shards[0] if shards else 0
        self._direct = (
            bool(self._shard) and self._is_plain() and tuple(self._array.chunks)[1:] == self.shape[1:]
        )
        self._maps: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint64]]] = {}
        self._chunks: dict[int, Array] = {}  # the one that was read last, as it lies in its map

    def rows(self, start: int, stop: int) -> Array:
        if not self._direct:
            return self._decode(start, stop)
        if start // self._chunk == (stop - 1) // self._chunk and start < stop:
            return self.peek(start, stop).copy()
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        row = start
        while row < stop:
            first = row - row % self._chunk
            end = min(first + self._chunk, stop)
            out[row - start : end - start] = self._read_chunk(row // self._chunk)[row - first : end - first]
            row = end
        return out

    def peek(self, start: int, stop: int) -> Array:
        chunk = start // self._chunk
        if not self._direct or start >= stop or chunk != (stop - 1) // self._chunk:
            return self.rows(start, stop)
        first = chunk * self._chunk
        if chunk not in self._chunks:
            self._chunks = {chunk: self._read_chunk(chunk)}
        return self._chunks[chunk][start - first : stop - first]

    def _decode(self, start: int, stop: int) -> Array:
        """Read through zarr, whose codecs notice some damage by themselves."""
        try:
            return np.asarray(self._array[start:stop])
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UnsupsegError(f"The array '{self._path}' cannot be decoded ({error}); {MEND}") from None

    def _is_plain(self) -> bool:
        raw = json.loads((self._path / "zarr.json").read_text(encoding="utf-8"))
        codecs = raw["codecs"]
        if len(codecs) != 1 or codecs[0]["name"] != "sharding_indexed":
            return False
        inside = codecs[0]["configuration"]
        plain = [codec["name"] for codec in inside["codecs"]] == ["bytes"]
        index = [codec["name"] for codec in inside["index_codecs"]] == ["bytes", "crc32c"]
        return (
            plain and index and inside.get("index_location", "end") == "end" and self.dtype.byteorder in "=|<"
        )

    def _read_chunk(self, chunk: int) -> Array:
        per_shard = self._shard // self._chunk
        data, index = self._map(chunk // per_shard, per_shard)
        shape = (self._chunk, *self.shape[1:])
        offset, length = index[chunk % per_shard].tolist()
        if offset == _EMPTY:
            return np.zeros(shape, self.dtype)
        return data[offset : offset + length].view(self.dtype).reshape(shape)

    def _map(self, shard: int, per_shard: int) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        if shard not in self._maps:
            path = self._path.joinpath("c", str(shard), *["0"] * (len(self.shape) - 1))
            if not path.exists():
                raise UnsupsegError(f"The shard '{path}' is missing; {MEND}")
            empty = path.stat().st_size == 0
            data = np.empty(0, np.uint8) if empty else np.asarray(np.memmap(path, np.uint8, mode="r"))
            row = math.prod((self._chunk, *self.shape[1:])) * self.dtype.itemsize
            index = _read_index(data, per_shard, row)
            if index is None:
                raise UnsupsegError(f"The shard '{path}' is cut short, or its index is damaged; {MEND}")
            self._maps[shard] = (data, index)
        return self._maps[shard]


def _read_index(data: NDArray[np.uint8], chunks: int, size: int) -> NDArray[np.uint64] | None:
    """Return offset and length of each chunk (chunks, 2) from a shard's end, None if no index is there.

    In a file that was cut other bytes lie at its end: by them a chunk is of another size or beyond the file. Chunks
    lie close together, so that by a flipped bit in the index one of them overlaps another, too.
    """
    end = len(data) - chunks * _INDEX_ENTRY - _CHECKSUM
    if end < 0:
        return None
    index = np.frombuffer(data[end:-_CHECKSUM].tobytes(), "<u8").reshape(-1, 2)
    written = index[index[:, 0] != _EMPTY]
    in_place = (written[:, 1] == size) & (written[:, 0] <= max(0, end - size))
    apart = np.diff(np.sort(written[:, 0])) >= size
    return index if in_place.all() and apart.all() else None


class RaggedWriter:
    """Writes the rows of views with different grids one after the other; blocks survive a kill.

    Rows without channels, such as bytes, make shards of one chunk each, so that any stretch of them is read at once.

    Blocks are kept as plain ``.npy`` files and copied into one sharded array by `close`, since a shard
    boundary of the token axis falls into the middle of a view. They lie in a hidden folder, which is scratch:
    it stays until the artifact is published, so that a kill after `close` loses nothing either.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blocks = path.with_name(f".{path.name}.blocks")
        self._blocks.mkdir(parents=True, exist_ok=True)

    def write(self, block: int, tokens: Array) -> None:
        """Write one block (t, C) of tokens; blocks are joined in the order of their numbers."""
        partial = self._blocks / f".{block:08d}.npy"
        np.save(partial, tokens)
        partial.rename(self.file(block))

    def file(self, block: int) -> Path:
        """Return the file of a block."""
        return self._blocks / f"{block:08d}.npy"

    def close(self) -> None:
        """Join the blocks into the array (T, C), in place of what a killed call left."""
        shutil.rmtree(self.path, ignore_errors=True)
        paths = sorted(self._blocks.glob("[0-9]*.npy"))
        heads = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
        total, width = sum(len(head) for head in heads), heads[0].shape[1:]
        per_shard = rows_per_shard(width, heads[0].dtype, total)
        if width:
            chunk, shard = _RAGGED_CHUNK, max(_RAGGED_CHUNK, per_shard - per_shard % _RAGGED_CHUNK)
        else:  # shards of one chunk and of one length: a chunk is always written whole
            chunk = shard = -(-total // max(1, -(-total // per_shard)))
        array = create_array(self.path, (total, *width), heads[0].dtype, (chunk, *width), (shard, *width))
        for first, rows in _regroup(heads, shard):
            array[first : first + len(rows)] = rows


def _regroup(blocks: Iterable[Array], size: int) -> Iterator[tuple[int, Array]]:
    waiting: list[Array] = []
    count = first = 0
    for block in blocks:
        start = 0
        while start < len(block):
            take = min(size - count, len(block) - start)
            waiting.append(np.asarray(block[start : start + take]))
            count, start = count + take, start + take
            if count == size:
                yield first, np.concatenate(waiting)
                first, waiting, count = first + size, [], 0
    if waiting:
        yield first, np.concatenate(waiting)
