"""Arrays that a labeller leaves for trainers beside its masks: by name, one of any shape for each view."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unsupseg_cli.artifacts.arrays import Array
from unsupseg_cli.artifacts.damage import read_json
from unsupseg_cli.artifacts.packed import PackedReader, PackedWriter
from unsupseg_cli.core.errors import UnsupsegError

FOLDER, TYPES = "arrays", "types.json"


class ViewArraysWriter:
    """Writes the arrays of views, block by block; finished blocks survive a kill.

    Args:
        folder: the draft's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER

    def write(self, block: int, views: Sequence[Mapping[str, Array]]) -> dict[str, Any]:
        """Write the arrays of one block of views, in order; return what `close` must be told of the block.

        Raises:
            UnsupsegError: the views have arrays of different names or types.
        """
        first = {name: np.asarray(array).dtype for name, array in views[0].items()}
        for arrays in views:
            if {name: np.asarray(array).dtype for name, array in arrays.items()} != first:
                raise UnsupsegError("The labeller gave views with arrays of different names or types.")
        return {
            name: {
                "type": dtype.name,
                "told": self._writer(name, dtype).write(block, [arrays[name] for arrays in views]),
            }
            for name, dtype in first.items()
        }

    def files(self, block: int, written: Mapping[str, Any]) -> list[Path]:
        """Return the files that hold a block, of which `write` returned ``written``."""
        return [self._writer(name, np.dtype(part["type"])).file(block) for name, part in written.items()]

    def close(self, blocks: Sequence[Mapping[str, Any]]) -> None:
        """Join the blocks; ``blocks`` is what `write` returned of each."""
        types = {name: part["type"] for name, part in blocks[0].items()}
        if not types:
            return
        for name, dtype in types.items():
            told = [piece for block in blocks for piece in block[name]["told"]]
            self._writer(name, np.dtype(dtype)).close(told)
        (self._folder / TYPES).write_text(json.dumps(types, indent=1) + "\n", encoding="utf-8")

    def _writer(self, name: str, dtype: np.dtype[Any]) -> PackedWriter:
        return PackedWriter(self._folder, name, dtype)


class ViewArrays:
    """Reads the arrays of views in the folder of an artifact; it may have none."""

    def __init__(self, folder: Path) -> None:
        path = folder / FOLDER / TYPES
        types = read_json(path) if path.exists() else {}
        self._readers = {name: PackedReader(folder / FOLDER, name, dtype) for name, dtype in types.items()}

    def __call__(self, view: int) -> dict[str, Array]:
        """Return the arrays of a view by name."""
        return {name: reader[view] for name, reader in self._readers.items()}
