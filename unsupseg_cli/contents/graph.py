"""What a `graph` artifact holds: the nearest views of every view, and how alike they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.artifacts.arrays import RowReader, write_array
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.clustering.neighbours import Neighbours, NeighbourSearch, joined
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.core.shards import Shard

_NEIGHBOURS, _SIMILARITY = "neighbors", "similarity"


class GraphWriter:
    """Finds and writes the neighbours of all rows, part by part; finished parts survive a kill.

    Args:
        draft: of the graph.
        search: finds them.
        shard: the parts that are made here.
    """

    def __init__(self, draft: Draft, search: NeighbourSearch, shard: Shard) -> None:
        self._draft, self._search = draft, search
        self._parts = search.parts()
        self._own = shard.take(range(len(self._parts)))

    def write(self, reporter: Reporter) -> None:
        """Find the neighbours of the rows of this shard that are not there yet."""
        todo = [part for part in self._own if not self._draft.is_done(_name(part))]
        done = len(self._own) - len(todo)
        for part in reporter.track(todo, "graph", total=len(self._own), done=done):
            neighbours = self._search(self._parts[part])
            path = self._path(part)
            np.savez(path, indices=neighbours.indices, similarity=neighbours.similarity)
            self._draft.finish(_name(part), files=[path])

    def missing(self) -> int:
        """Return how many parts, of all shards, are not finished."""
        return sum(not self._draft.is_noted(_name(part)) for part in range(len(self._parts)))

    def close(self) -> Neighbours:
        """Join the parts, write them, and return them."""
        parts = []
        for part in range(len(self._parts)):
            self._draft.bring([self._path(part)])
            with np.load(self._path(part), allow_pickle=False) as stored:
                parts.append(Neighbours(stored["indices"], stored["similarity"], self._search.engine))
        graph = joined(parts)
        _write(self._draft.folder, graph)
        return graph

    def _path(self, part: int) -> Path:
        return self._draft.folder / f".neighbors-{part:06d}.npz"


def _name(part: int) -> str:
    return f"rows-{part:06d}"


def _write(folder: Path, graph: Neighbours) -> None:
    """Write the neighbours (N, k) int32 and their similarity (N, k) float16."""
    for name, values in ((_NEIGHBOURS, graph.indices), (_SIMILARITY, graph.similarity)):
        shutil.rmtree(folder / name, ignore_errors=True)  # of a call that was killed here
        write_array(folder / name, values)


def read_neighbours(graph: Artifact) -> NDArray[np.int32]:
    """Return the neighbours (N, k) of a graph."""
    reader = RowReader(graph.path / _NEIGHBOURS)
    return reader.rows(0, len(reader)).astype(np.int32, copy=False)
