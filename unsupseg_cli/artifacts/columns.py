"""Parquet files read by column: a value as one of Python when it is asked for, all of them as an array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unsupseg_cli.artifacts.damage import reading

_AT_ONCE = 1 << 16  # values that are made Python's together


class Column(Sequence[Any]):
    """A column in memory as Arrow lays it out, a few bytes a row; equal to any sequence of the same values."""

    def __init__(self, values: pa.ChunkedArray) -> None:
        chunks = values.combine_chunks()
        self._values: pa.Array = chunks.combine_chunks() if isinstance(chunks, pa.ChunkedArray) else chunks

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, row: int) -> Any: ...
    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...
    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(len(self)))]
        return self._values[row].as_py()

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self._values.slice(start, _AT_ONCE).to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Column):
            return bool(self._values.equals(other._values))
        return isinstance(other, Sequence) and list(self) == list(other)

    def numpy(self) -> NDArray[Any]:
        """Return the values as one array, (N,), or (N, k) where each is a list of k numbers."""
        if pa.types.is_list(self._values.type):
            values: NDArray[Any] = self._values.flatten().to_numpy(zero_copy_only=False)
            return values.reshape(len(self), -1)
        array: NDArray[Any] = self._values.to_numpy(zero_copy_only=False)
        return array

    def codes(self) -> NDArray[np.int64]:
        """Return a number for each value, (N,): equal ones where values are equal."""
        codes: NDArray[np.int64] = self._values.dictionary_encode().indices.to_numpy().astype(np.int64)
        return codes


class Columns(Mapping[str, Column]):
    """The columns of a Parquet file, each read when it is first asked for."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, dict[str, Column]()
        with reading(path):
            metadata = pq.read_metadata(path)
            self._names, self.rows = list(metadata.schema.to_arrow_schema().names), int(metadata.num_rows)

    def __getitem__(self, name: str) -> Column:
        if name not in self._read:
            if name not in self._names:
                raise KeyError(name)
            with reading(self._path):
                self._read[name] = Column(pq.read_table(self._path, columns=[name])[name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
