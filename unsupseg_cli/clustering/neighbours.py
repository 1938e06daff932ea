"""Nearest neighbours by cosine: the graph of images (or crops) that look alike.

Exact search multiplies blocks of rows with all rows, so that memory is O(block x N + N k) and never N x N.
Source: STEGO (Hamilton et al., ICLR 2022, section 4.1): the 30 nearest images by pooled features.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
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


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest rows of every row, most similar first, itself left out.

    ``indices`` (N, k) int32; ``similarity`` (N, k) float16, cosines in [-1, 1]; ``engine`` that found them.
    """

    indices: NDArray[np.int32]
    similarity: NDArray[np.float16]
    engine: Engine


def resolve_engine(engine: str, rows: int) -> Engine:
    """Return the engine behind ``auto``: exact up to `LARGE` rows, faiss beyond where it is installed.

    Raises:
        UsageError: ``faiss`` was asked for and is not installed, or the engine is unknown.
    """
    installed = find_spec("faiss") is not None
    if engine == "auto":
        return "faiss" if rows > LARGE and installed else "exact"
    if engine == "exact":
        return "exact"
    if engine != "faiss":
        raise UsageError(f"Unknown engine '{engine}'; expected auto, exact or faiss.")
    if not installed:
        raise UsageError("The engine 'faiss' needs the package faiss-cpu; install it or take --engine exact.")
    return "faiss"


def nearest_neighbours(
    descriptors: NDArray[Any] | Tensor,
    k: int,
    *,
    engine: str = "auto",
    device: torch.device | str = "cpu",
    block: int | None = None,
    reporter: Reporter | None = None,
) -> Neighbours:
    """Find the k most similar other rows of every row by cosine.

    Of fewer than k + 1 rows each has all others as neighbours: k is then N - 1. Among equally similar rows
    (to within 1e-6) the lower index comes first. A zero row has similarity 0 with everything.

    Args:
        descriptors: (N, C), any floating type; lengths do not matter.
        k: neighbours per row.
        engine: ``exact``, ``faiss`` (exact up to 20,000 rows, inverted lists beyond) or ``auto``.
        device: where the exact engine multiplies.
        block: rows per product; default: such that a block takes 128 MiB.
        reporter: is told the progress.

    Raises:
        UsageError: k below 1, fewer than two rows, or an engine that is not there.
        UnsupsegError: a descriptor is NaN or infinite.
    """
    rows = torch.as_tensor(descriptors)
    if rows.ndim != 2:
        raise UnsupsegError(
            f"Neighbours need descriptors of shape (rows, channels), found {tuple(rows.shape)}."
        )
    if k < 1:
        raise UsageError(f"A graph needs at least one neighbour, got {k}: raise --neighbors.")
    if len(rows) < 2:
        raise UsageError(f"A graph needs at least two images, found {len(rows)}; extract features of more.")
    bad = int((~torch.isfinite(rows).all(1)).sum())
    if bad:
        raise UnsupsegError(
            f"{bad} of {len(rows)} descriptors hold NaN or infinity; extract the features again with "
            "--precision fp32, and check the backbone's weights."
        )
    unit, k, found = (
        F.normalize(rows.float(), dim=1),
        min(k, len(rows) - 1),
        resolve_engine(engine, len(rows)),
    )
    search = _search_faiss if found == "faiss" else _search_exact
    indices, similarity = search(unit, k, torch.device(device), block, reporter or Silent())
    return Neighbours(indices.numpy(), similarity.half().numpy(), found)


def _search_exact(
    unit: Tensor, k: int, device: torch.device, block: int | None, reporter: Reporter
) -> tuple[Tensor, Tensor]:
    count = len(unit)
    block = block or max(1, _BLOCK_BYTES // (4 * count))
    indices, similarity = torch.empty(count, k, dtype=torch.int32), torch.empty(count, k)
    columns = unit.to(device).T
    starts = range(0, count, block)
    for start in reporter.track(starts, "graph", total=len(starts)):
        own = torch.arange(start, min(start + block, count), device=device)
        cosine = columns.T[own] @ columns
        cosine[own - start, own] = -torch.inf
        chosen, values = _top(cosine, k)
        indices[start : start + block], similarity[start : start + block] = chosen.int().cpu(), values.cpu()
    return indices, similarity


def _top(cosine: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return columns and values (rows, k) of the largest entries; of equal ones the first columns.

    ``cosine`` is overwritten. `topk` takes any of the equal entries at the border of the k, so rows where the
    next one equals the last are sorted whole.
    """
    cosine.div_(_STEP).round_().mul_(_STEP)
    values, columns = cosine.topk(min(k + 1, cosine.shape[1]), dim=1)
    chosen = columns[:, :k]
    if values.shape[1] > k:
        tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
        for some in torch.split(tied, 256):
            chosen[some] = cosine[some].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return _ordered(chosen, cosine.gather(1, chosen))


def _ordered(columns: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the entries of every row by falling value, equal ones by rising column."""
    by_column = columns.argsort(dim=1)
    columns, values = columns.gather(1, by_column), values.gather(1, by_column)
    values, by_value = values.sort(dim=1, descending=True, stable=True)
    return columns.gather(1, by_value), values


def _search_faiss(
    unit: Tensor, k: int, device: torch.device, block: int | None, reporter: Reporter
) -> tuple[Tensor, Tensor]:
    import faiss

    rows = np.ascontiguousarray(unit.numpy())
    count, dim = rows.shape
    index: Any = faiss.IndexFlatIP(dim)
    if count > _FLAT:
        lists = int(_LISTS * count**0.5)
        index = faiss.IndexIVFFlat(index, dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = _POINTS_PER_LIST
        index.cp.seed = 0
        index.nprobe = _PROBES
        reporter.info(f"faiss: {lists} lists over {count:,} rows")
        index.train(rows)
    index.add(rows)
    indices, similarity = torch.empty(count, k, dtype=torch.int32), torch.empty(count, k)
    block = block or 4096
    starts = range(0, count, block)
    for start in reporter.track(starts, "graph", total=len(starts)):
        found, columns = index.search(rows[start : start + block], k + 1)
        own = torch.arange(start, start + len(columns))[:, None]
        chosen, values = torch.from_numpy(columns), torch.from_numpy(found)
        values = values.div(_STEP).round().mul(_STEP)
        # The row itself, or the least similar where duplicates pushed it out, goes to the end and is dropped.
        values[chosen == own] = -torch.inf
        chosen, values = _ordered(chosen, values)
        chosen, values = chosen[:, :k], values[:, :k]
        short = (~torch.isfinite(values) | (chosen < 0)).any(1).nonzero()[:, 0]
        for some in torch.split(short, 256):  # its lists held too few rows
            cosine = unit[start + some] @ unit.T
            cosine[torch.arange(len(some)), start + some] = -torch.inf
            chosen[some], values[some] = _top(cosine, k)
        indices[start : start + block], similarity[start : start + block] = chosen.int(), values
    return indices, similarity
