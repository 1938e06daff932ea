"""Nearest neighbours by cosine: the graph of images (or crops) that look alike.

Exact search compares blocks of rows with all rows, so that memory is O(N (C + k) + block x N) and never N x N:
with faiss's flat index on a CPU, which is faster there, and by a product of matrices on other devices.
Source: STEGO (Hamilton et al., ICLR 2022, section 4.1): the 30 nearest images by pooled features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Reporter, Silent

Engine = Literal["exact", "faiss"]

LARGE = 100_000  # rows beyond which `auto` takes faiss: exact search grows with the square
_BLOCK_BYTES = 128 << 20
_STEP = 2.0**-20  # similarities are compared in steps coarser than the rounding of a matrix product
_LISTS, _PROBES = 2, 64  # faiss: 2 sqrt(N) lists, of which 64 are searched; recall in benchmarks/graph.py
_POINTS_PER_LIST = 64  # faiss: rows that train the lists, its own default is 256
_FLAT = 20_000  # rows up to which faiss searches everything
_PART = 4096  # rows of a part, and that faiss searches at a time
_SORT_BLOCK = 256  # rows that are sorted whole at a time


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest rows of every row, most similar first, itself left out.

    ``indices`` (N, k) int32; ``similarity`` (N, k) float16, cosines in [-1, 1]; ``engine`` that found them.
    """

    indices: NDArray[np.int32]
    similarity: NDArray[np.float16]
    engine: Engine


def resolve_engine(engine: str, rows: int) -> Engine:
    """Return the engine behind ``auto``: exact up to `LARGE` rows, faiss beyond.

    Raises:
        UsageError: the engine is unknown.
    """
    if engine == "auto":
        return "faiss" if rows > LARGE else "exact"
    if engine == "exact":
        return "exact"
    if engine == "faiss":
        return "faiss"
    raise UsageError(f"Unknown engine '{engine}'; expected auto, exact or faiss.")


def nearest_neighbours(
    descriptors: NDArray[Any] | Tensor,
    k: int,
    *,
    engine: str = "auto",
    device: torch.device | str = "cpu",
    block: int | None = None,
    reporter: Reporter | None = None,
) -> Neighbours:
    """Find the k most similar other rows of every row by cosine, see `NeighbourSearch`."""
    reporter = reporter or Silent()
    search = NeighbourSearch(descriptors, k, engine=engine, device=device, block=block, reporter=reporter)
    parts = search.parts()
    return joined([search(rows) for rows in reporter.track(parts, "graph", total=len(parts))])


def joined(parts: Sequence[Neighbours]) -> Neighbours:
    """Return the neighbours of all rows, from those of one part after the other."""
    return Neighbours(
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.similarity for part in parts]),
        parts[0].engine,
    )


class NeighbourSearch:
    """Finds the k most similar other rows of some rows by cosine, among all.

    Of fewer than k + 1 rows each has all others as neighbours: k is then N - 1. Among equally similar rows
    (to within 1e-6) the lower index comes first. A zero row has similarity 0 with everything. What is found does not
    depend on the rows that are asked together.

    Args:
        descriptors: (N, C), any floating type; lengths do not matter.
        k: neighbours per row.
        engine: ``exact``, ``faiss`` (exact up to 20,000 rows, inverted lists beyond) or ``auto``.
        device: where the exact engine works; faiss works on the CPU.
        block: rows at a time; default: 4096 for faiss, for a product as many as take 128 MiB.
        reporter: is told of the lists.

    Raises:
        UsageError: k below 1, fewer than two rows, or an unknown engine.
        UnsupsegError: a descriptor is NaN or infinite.
    """

    def __init__(
        self,
        descriptors: NDArray[Any] | Tensor,
        k: int,
        *,
        engine: str = "auto",
        device: torch.device | str = "cpu",
        block: int | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self._unit, device = _unit_rows(descriptors, k), torch.device(device)
        self.rows = len(self._unit)
        self.k, self.engine = min(k, self.rows - 1), resolve_engine(engine, self.rows)
        self._index: Any = None
        self._exhaustive = self.engine == "exact" or self.rows <= _FLAT
        if self.engine == "exact" and device.type != "cpu":
            self._unit = self._unit.to(device)
            self._block = block or max(1, _BLOCK_BYTES // (4 * self.rows))
        else:
            self._index = _faiss_index(self._unit, self._exhaustive, reporter or Silent())
            self._block = block or _PART

    def parts(self) -> list[range]:
        """Return the rows in parts of some thousands, the same whatever the device."""
        return _cut(range(self.rows), _PART)

    def __call__(self, rows: range) -> Neighbours:
        """Return the neighbours of some rows that follow each other."""
        search = self._compare if self._index is None else self._search
        found = [search(part) for part in _cut(rows, self._block)]
        indices, similarity = (torch.cat(values).cpu() for values in zip(*found, strict=True))
        return Neighbours(indices.int().numpy(), similarity.half().numpy(), self.engine)

    def _compare(self, rows: range) -> tuple[Tensor, Tensor]:
        """Return columns and values (n, k) from products with all rows."""
        queries = torch.arange(rows.start, rows.stop, device=self._unit.device)
        return _compare_with_all(self._unit, queries, self.k)

    def _search(self, rows: range) -> tuple[Tensor, Tensor]:
        """Return columns and values (n, k) that faiss finds.

        Rows that it leaves unsettled are compared with all others by a product: those whose lists held too few
        and, in an exhaustive search, those where one more would be equally similar: faiss takes any of the equal ones.
        """
        k, queries = self.k, torch.arange(rows.start, rows.stop)
        # Two more than k: the row itself, which goes to the end, and the one after the border.
        products, numbers = self._index.search(self._unit[queries].numpy(), min(k + 2, self.rows))
        columns, values = torch.from_numpy(numbers), torch.from_numpy(products)
        values = values.div(_STEP).round().mul(_STEP)
        values[columns == queries[:, None]] = -torch.inf
        columns, values = _ordered(columns, values)
        chosen, best = columns[:, :k], values[:, :k]
        unsettled = (~torch.isfinite(best) | (chosen < 0)).any(1)
        if self._exhaustive and values.shape[1] > k:
            unsettled |= values[:, k - 1] == values[:, k]
        for part in torch.split(unsettled.nonzero()[:, 0], _SORT_BLOCK):
            chosen[part], best[part] = _compare_with_all(self._unit, queries[part], k)
        return chosen, best


def _cut(rows: range, most: int) -> list[range]:
    """Return rows in parts of at most so many."""
    return [rows[start : start + most] for start in range(0, len(rows), most)]


def _unit_rows(descriptors: NDArray[Any] | Tensor, k: int) -> Tensor:
    """Return the rows at length 1, (N, C) float32 on the CPU; raises what `NeighbourSearch` does."""
    rows = torch.as_tensor(descriptors)
    if rows.ndim != 2:
        raise UnsupsegError(
            f"Neighbours need descriptors of shape (rows, channels), found {tuple(rows.shape)}."
        )
    if k < 1:
        raise UsageError(f"A graph needs at least one neighbour, got {k}: raise --neighbors.")
    if len(rows) < 2:
        raise UsageError(f"A graph needs at least two images, found {len(rows)}; extract features of more.")
    invalid = int((~torch.isfinite(rows).all(1)).sum())
    if invalid:
        raise UnsupsegError(
            f"{invalid} of {len(rows)} descriptors hold NaN or infinity; extract the features again with "
            "--precision fp32, and check the backbone's weights."
        )
    return F.normalize(rows.float(), dim=1).cpu()


def _faiss_index(unit: Tensor, exhaustive: bool, reporter: Reporter) -> Any:
    """Return an index of unit rows (N, C) that looks at all of them, or at inverted lists."""
    import faiss

    rows = np.ascontiguousarray(unit.numpy())
    count, dim = rows.shape
    index: Any = faiss.IndexFlatIP(dim)
    if not exhaustive:
        lists = int(_LISTS * count**0.5)
        index = faiss.IndexIVFFlat(index, dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = _POINTS_PER_LIST
        index.cp.seed = 0
        index.nprobe = _PROBES
        reporter.info(f"faiss: {lists} lists over {count:,} rows")
        index.train(rows)
    index.add(rows)
    return index


def _compare_with_all(unit: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return columns and values (n, k) of the rows numbered ``queries`` (n,) from their products with all rows."""
    cosine = unit[queries] @ unit.T
    cosine[torch.arange(len(queries), device=unit.device), queries] = -torch.inf
    return _largest(cosine, k)


def _largest(cosine: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return columns and values (rows, k) of the largest entries; of equal ones the first columns.

    ``cosine`` is overwritten. `topk` takes any of the equal entries at the border of the k, so rows where the
    next one equals the last are sorted whole.
    """
    cosine.div_(_STEP).round_().mul_(_STEP)
    values, columns = cosine.topk(min(k + 1, cosine.shape[1]), dim=1)
    chosen = columns[:, :k]
    if values.shape[1] > k:
        tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
        for part in torch.split(tied, _SORT_BLOCK):
            chosen[part] = cosine[part].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return _ordered(chosen, cosine.gather(1, chosen))


def _ordered(columns: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the entries of every row by falling value, equal ones by rising column."""
    by_column = columns.argsort(dim=1)
    columns, values = columns.gather(1, by_column), values.gather(1, by_column)
    values, by_value = values.sort(dim=1, descending=True, stable=True)
    return columns.gather(1, by_value), values
