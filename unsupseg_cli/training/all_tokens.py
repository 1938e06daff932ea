"""k-means over all tokens, however many: memory holds a sample and a batch, and several processes may share the passes.

The best centres of a sample are the start, so that few passes are left. Each pass takes the collection part by part;
the parts do not depend on how many processes there are, and what was learned of them is put together in their order:
the centres are those of one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.clustering.lloyd import CHUNK, Run, Statistics, check_finite, learn, lloyd
from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core import seeds
from unsupseg_cli.core.progress import Reporter, Silent
from unsupseg_cli.training.tokens import TokenSource, ViewsSource, flat_batches, sample_tokens

_MOST_PARTS = 256
_LEAST_VIEWS = 256  # of a part, whose sums take some 100 kB and a flush to the disk
_BLOCK = 64  # views that lie in one file, at most


class Parts(Protocol):
    """What is learned of parts of a collection, which several processes may share: each is given everything."""

    def gather(
        self, name: str, count: int, make: Callable[[int], Mapping[str, Tensor]]
    ) -> Iterator[Mapping[str, Tensor]]:
        """Yield what ``make`` gives for each of ``count`` parts, on the CPU, in their order.

        ``name`` tells this from all else that is gathered, and the progress what it is.
        """


class OwnParts:
    """Every part is made here, when it is asked for."""

    def __init__(self, reporter: Reporter | None = None) -> None:
        self._reporter = reporter or Silent()

    def gather(
        self, name: str, count: int, make: Callable[[int], Mapping[str, Tensor]]
    ) -> Iterator[Mapping[str, Tensor]]:
        """Make and yield each part."""
        return map(make, track_parts(self._reporter, range(count), name))


def track_parts(reporter: Reporter, parts: Sequence[int], name: str) -> Iterable[int]:
    """Return parts of which a reporter is told the progress; that of a single one is its own."""
    return parts if len(parts) == 1 else reporter.track(parts, name, total=len(parts))


@dataclass(frozen=True, eq=False)
class AllTokensResult:
    """Centres of all tokens.

    Attributes:
        centroids: (k, C) float32, unit length, on the CPU.
        inertia: mean of 1 - cosine of all tokens to the nearest centre.
        inertias: of the sample, of every restart.
        tokens: number of tokens.
        passes: over all of them.
    """

    centroids: Tensor
    inertia: float
    inertias: tuple[float, ...]
    tokens: int
    passes: int


def kmeans_of_all_tokens(
    source: TokenSource,
    k: int,
    parts: Parts,
    *,
    restarts: int = 5,
    iterations: int = 50,
    sample: int = 200_000,
    seed: int = 0,
    tolerance: float = 1e-5,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
) -> AllTokensResult:
    """Cluster all tokens of a source: k-means of a sample, then Lloyd's iterations over everything.

    Args:
        source: of the tokens.
        k: number of clusters.
        parts: who makes which part.
        restarts: runs on the sample.
        iterations: most iterations of a run on the sample, and then over all tokens.
        sample: most tokens of the sample.
        seed: of all random choices.
        tolerance: relative fall of the inertia that counts as progress.
        device: where the tokens are.
        reporter: is told the passes over the sample.

    Raises:
        UsageError: more clusters than tokens.
        UnsupsegError: a token is NaN or infinite.
    """
    work = _AllTokens(source, parts, device or torch.device("cpu"))
    counts = {"restarts": restarts, "iterations": iterations}
    start, inertias = work.start(k, sample, seed, tolerance=tolerance, reporter=reporter, **counts)
    run = Run(start)
    for _ in lloyd(work.learn, [run], iterations, tolerance):
        pass
    return AllTokensResult(run.centroids, run.statistics.inertia, inertias, work.tokens, work.passes)


class _AllTokens:
    """What is done part by part."""

    def __init__(self, source: TokenSource, parts: Parts, device: torch.device) -> None:
        cells = source.grids.prod(1)
        self._sources = [ViewsSource(source, views) for views in _cut(len(cells))]
        self._parts, self._device = parts, device
        self.tokens, self.passes = int(cells.sum()), 0

    def start(self, k: int, sample: int, seed: int, **settings: Any) -> tuple[Tensor, tuple[float, ...]]:
        """Return the best centres (k, C) of a sample, and the inertia of every run on it."""

        def draw(part: int) -> dict[str, Tensor]:
            source = self._sources[part]
            limit = round(sample * int(source.grids.prod(1).sum()) / self.tokens)
            return {"tokens": sample_tokens(source, limit, seeds.stream(seed, "sample", part)).cpu()}

        def make(_: int) -> dict[str, Tensor]:
            drawn = self._parts.gather("k-means sample", len(self._sources), draw)
            points = torch.cat([part["tokens"] for part in drawn]).to(self._device)
            result = spherical_kmeans(F.normalize(points, dim=-1, out=points), k, seed=seed, **settings)
            inertias = torch.tensor(result.inertias, dtype=torch.float64)
            return {"centroids": result.centroids.cpu(), "inertias": inertias}

        (made,) = self._parts.gather("k-means start", 1, make)
        return made["centroids"], tuple(made["inertias"].tolist())

    def learn(self, runs: Sequence[Run]) -> None:
        """Pass over all tokens for each of some runs."""
        for run in runs:
            self.passes += 1
            statistics = Statistics(run.centroids)
            make = partial(self._pass, run.centroids)
            for learned in self._parts.gather(f"k-means pass {self.passes}", len(self._sources), make):
                statistics.merge(learned)
            run.statistics = statistics

    def _pass(self, centroids: Tensor, part: int) -> dict[str, Tensor]:
        """Return what one part says about centres."""
        run = Run(centroids.to(self._device))
        learn(_chunks(self._sources[part]), [run])
        return run.statistics.tensors()


def _chunks(source: TokenSource) -> Iterator[Tensor]:
    """Yield all tokens as unit points (n, C); raises UnsupsegError for NaN and infinite ones."""
    for tokens in flat_batches(source):
        for points in torch.split(tokens, CHUNK):
            check_finite(points)
            yield F.normalize(points, dim=-1)


def _cut(views: int) -> list[range]:
    """Return the views of each part: whole files, and not so few that the parts are the work."""
    size = max(_LEAST_VIEWS, _BLOCK * math.ceil(views / (_BLOCK * _MOST_PARTS)))
    return [range(start, min(start + size, views)) for start in range(0, views, size)]
