"""What a `graph` artifact holds: the nearest views of every view, and how alike they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.artifacts.arrays import RowReader, write_array
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.clustering.neighbours import Neighbours

_NEIGHBOURS, _SIMILARITY = "neighbors", "similarity"


def write_graph(folder: Path, graph: Neighbours) -> None:
    """Write the neighbours (N, k) int32 and their similarity (N, k) float16."""
    for name, values in ((_NEIGHBOURS, graph.indices), (_SIMILARITY, graph.similarity)):
        shutil.rmtree(folder / name, ignore_errors=True)  # of a call that was killed here
        write_array(folder / name, values)


def read_neighbours(graph: Artifact) -> NDArray[np.int32]:
    """Return the neighbours (N, k) of a graph."""
    reader = RowReader(graph.path / _NEIGHBOURS)
    return reader.rows(0, len(reader)).astype(np.int32, copy=False)
