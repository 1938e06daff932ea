"""Nearest neighbours by cosine: the graph of images (or crops) that look alike.

Exact search compares blocks of rows with all rows, so that memory is O(N (C + k) + block x N) and never N x N;
approximate search looks at some of faiss's inverted lists.
Source: STEGO (Hamilton et al., ICLR 2022, section 4.1): the 30 nearest images by pooled features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import starmap
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
_STEP = 2.0**-20  # similarities that are equal in steps of this are equal
_MARGIN = 2.0**-17  # more than float32 products of unit rows are off by
_SPARE = 16  # candidates beyond k: a margin below the k-th hardly ever holds as many
_LISTS, _PROBES = 2, 64  # faiss: 2 sqrt(N) lists, of which 64 are searched; recall in benchmarks/graph.py
_POINTS_PER_LIST = 64  # faiss: rows that train the lists, its own default is 256
_FLAT = 20_000  # rows up to which faiss searches everything
_PART = 4096  # rows of a part, and that faiss searches at a time
_SORT_BLOCK = 128  # rows that are judged in float64 at a time


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
    depend on the rows that are asked together: float32 finds candidates, whose order float64 decides.

    Args:
        descriptors: (N, C), any floating type; lengths do not matter.
        k: neighbours per row.
        engine: ``exact``, ``faiss`` (exact up to 20,000 rows, inverted lists beyond) or ``auto``.
        device: where the exact engine works; faiss works on the CPU.
        block: rows at a time; default: 4096 for faiss, for exact as many as take 128 MiB.
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
        self._given, device = _checked(descriptors, k), torch.device(device)
        self.rows = len(self._given)
        self.k, self.engine = min(k, self.rows - 1), resolve_engine(engine, self.rows)
        self._index: Any = None
        self._exhaustive = self.engine == "exact" or self.rows <= _FLAT
        if self.engine == "exact":
            self._given = self._given.to(device)
            self._block = block or max(1, _BLOCK_BYTES // (4 * self.rows))
        else:
            unit = F.normalize(self._given.float(), dim=1)
            self._index = _faiss_index(unit, self._exhaustive, reporter or Silent())
            self._block = block or _PART

    @cached_property
    def _unit(self) -> Tensor:
        """The rows at length 1, (N, C) float32; faiss has its own."""
        return F.normalize(self._given.float(), dim=1)

    @cached_property
    def _scale(self) -> Tensor:
        """One over the length of each row (N,) float64, 0 of a zero row."""
        parts = torch.split(self._given, _PART)
        length = torch.cat([torch.linalg.vector_norm(part.double(), dim=1) for part in parts])
        return torch.where(length > 0, 1 / length, 0)

    def parts(self) -> list[range]:
        """Return the rows in parts of some thousands, the same whatever the device."""
        return _cut(range(self.rows), _PART)

    def __call__(self, rows: range) -> Neighbours:
        """Return the neighbours of some rows that follow each other."""
        found = [self._search(part) for part in _cut(rows, self._block)]
        indices, similarity = (torch.cat(values).cpu() for values in zip(*found, strict=True))
        return Neighbours(indices.int().numpy(), similarity.half().numpy(), self.engine)

    def _search(self, block: range) -> tuple[Tensor, Tensor]:
        """Return columns and values (n, k) of the nearest of a block of rows.

        Rows that the candidates leave unsettled are compared with all others: those whose lists held too few and, in an
        exhaustive search, those where a row that is no candidate may be as similar.
        """
        k, queries = self.k, torch.arange(block.start, block.stop, device=self._given.device)
        candidates = self._candidates(queries)
        parts = zip(torch.split(queries, _SORT_BLOCK), torch.split(candidates, _SORT_BLOCK), strict=True)
        columns, values = (torch.cat(found) for found in zip(*starmap(self._judge, parts), strict=True))
        chosen, best = columns[:, :k], values[:, :k]
        unsettled = ~torch.isfinite(best).all(1)
        if self._exhaustive and values.shape[1] < self.rows:
            unsettled |= values[:, k - 1] - values[:, -2] <= _MARGIN  # the last one may be the row itself
        numbers = unsettled.nonzero()[:, 0]
        for rows in _cut(range(len(numbers)), _SORT_BLOCK):
            chosen[numbers[rows]], best[numbers[rows]] = self._compare_with_all(queries[numbers[rows]])
        return chosen, best

    def _candidates(self, queries: Tensor) -> Tensor:
        """Return the columns of the nearest by float32, some more than k; of -1 where the lists held fewer."""
        count = min(self.k + _SPARE, self.rows)
        if self._index is not None:
            unit = F.normalize(self._given[queries].float(), dim=1)
            return torch.from_numpy(self._index.search(unit.numpy(), count)[1])
        return (self._unit[queries] @ self._unit.T).topk(count, dim=1).indices

    def _judge(self, queries: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return candidates (n, m) in their order, with their values; -inf for the row itself, and for -1."""
        products = self._given[columns].double() @ self._given[queries].double()[:, :, None]
        values = products[..., 0] * self._scale[columns] * self._scale[queries, None]
        values = _in_steps(values).masked_fill((columns == queries[:, None]) | (columns < 0), -torch.inf)
        by_column = columns.argsort(dim=1)
        columns, values = columns.gather(1, by_column), values.gather(1, by_column)
        values, by_value = values.sort(dim=1, descending=True, stable=True)
        return columns.gather(1, by_value), values

    def _compare_with_all(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return columns and values (n, k) of the nearest among all rows."""
        everything = torch.split(torch.arange(self.rows, device=queries.device), _PART)
        rows = self._given[queries].double()
        products = torch.cat([rows @ self._given[part].double().T for part in everything], 1)
        cosine = products * self._scale * self._scale[queries, None]
        cosine = _in_steps(cosine).scatter_(1, queries[:, None], -torch.inf)
        values, columns = cosine.sort(dim=1, descending=True, stable=True)
        return columns[:, : self.k], values[:, : self.k]


def _in_steps(values: Tensor) -> Tensor:
    return values.div(_STEP).round().mul(_STEP)


def _cut(rows: range, most: int) -> list[range]:
    """Return rows in parts of at most so many."""
    return [rows[start : start + most] for start in range(0, len(rows), most)]


def _checked(descriptors: NDArray[Any] | Tensor, k: int) -> Tensor:
    """Return the rows (N, C) on the CPU; raises what `NeighbourSearch` does."""
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
    return rows.cpu()


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
