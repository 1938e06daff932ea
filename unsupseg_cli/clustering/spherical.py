"""Spherical k-means: clusters of directions, with the mean of 1 - cosine as inertia.

Features may have any length: those that are not unit float32 already are copied and normalised once. Beyond
that, memory is a few blocks of a chunk of points by the centres of all runs side by side. Random numbers come from
the CPU and sums are kept in float64 there: a seed means the same start on every device.

Source: Dhillon and Modha, "Concept decompositions for large sparse text data using clustering", Machine
Learning 42 (2001); k-means++ of Arthur and Vassilvitskii (SODA 2007), whose squared distance between unit
vectors is 2 (1 - cosine).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Reporter, Silent

CHUNK = 32_768
_CENTRES_AT_ONCE = 1024  # of all runs side by side: 128 MiB of similarities in a chunk


@dataclass(frozen=True, eq=False)
class KMeansResult:
    """Centres found by k-means.

    Attributes:
        centroids: (k, C) float32, unit length, on the device of the features.
        inertia: mean of 1 - cosine to the nearest centre, in [0, 2]; the lowest of all restarts.
        inertias: the final inertia of every restart, in order.
        labels: (N,) int64, each point's nearest centre.
    """

    centroids: Tensor
    inertia: float
    inertias: tuple[float, ...]
    labels: Tensor


def spherical_kmeans(
    features: Tensor,
    k: int,
    *,
    restarts: int = 5,
    iterations: int = 50,
    seed: int = 0,
    chunk: int = CHUNK,
    tolerance: float = 1e-5,
    reporter: Reporter | None = None,
) -> KMeansResult:
    """Cluster points in memory with Lloyd's algorithm from several k-means++ starts; keep the best.

    A run ends when its inertia falls by less than ``tolerance`` (relative) or after ``iterations``. A centre
    that loses all its points restarts at the point farthest from its own centre.

    Args:
        features: (N, C) on any device, any floating type; lengths do not matter.
        k: number of clusters.
        restarts: runs from different starts.
        iterations: most passes over the points per run.
        seed: of all random choices.
        chunk: points per matrix product.
        tolerance: relative fall of the inertia that counts as progress.
        reporter: is told the passes over the points; those that a run leaves out count as done.

    Raises:
        UsageError: k or restarts below 1, or more clusters than points.
        UnsupsegError: a feature is NaN or infinite.
    """
    _check_counts(k, restarts)
    _check_points(features, k)
    for block in torch.split(features, chunk):
        _check_finite(block)
    features = _unit(features)
    chunks = torch.split(features, chunk)
    together = max(1, _CENTRES_AT_ONCE // k)
    groups = [range(first, min(first + together, restarts)) for first in range(0, restarts, together)]
    runs: list[_Run] = []

    def passes() -> Generator[None, None, None]:
        for group in groups:
            starts = (seeds.stream(seed, "restart", restart) for restart in group)
            runs.extend(_Run(kmeans_plus_plus(features, k, seed=start, chunk=chunk)) for start in starts)
            yield from _lloyd(chunks, runs[group.start : group.stop], iterations, tolerance)

    total = len(groups) * iterations
    for _ in (reporter or Silent()).track(passes(), f"k-means, {k} centres", total=total):
        pass
    inertias = tuple(run.statistics.inertia for run in runs)
    best = min(runs, key=lambda run: run.statistics.inertia)
    labels = nearest(features, best.centroids, chunk=chunk)[0]
    return KMeansResult(best.centroids, best.statistics.inertia, inertias, labels)


def nearest(features: Tensor, centroids: Tensor, *, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Return the nearest centre (N,) int64 of each point (N, C) and the cosine to it (N,), in [-1, 1]."""
    centres = _directions(centroids)
    parts = [(_unit(block) @ centres.T).max(1) for block in torch.split(features, chunk)]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def kmeans_plus_plus(features: Tensor, k: int, *, seed: int, chunk: int = CHUNK) -> Tensor:
    """Draw k starting centres (k, C) of unit length from points (N, C), far ones with higher probability.

    Each next centre is the best of 2 + log(k) candidates drawn in proportion to 1 - cosine to the nearest
    centre so far (the greedy variant of Arthur and Vassilvitskii). When all points coincide with a centre,
    the rest is drawn evenly.

    Raises:
        UsageError: k below 1 or more centres than points.
    """
    _check_counts(k, 1)
    _check_points(features, k)
    features = _unit(features)
    generator = torch.Generator().manual_seed(seed)
    candidates = 2 + int(math.log(k))
    first = int(torch.randint(len(features), (1,), generator=generator))
    chosen = [first]
    distance = _distances(features, torch.tensor([first]), chunk)[:, 0]
    for _ in range(k - 1):
        drawn = _draw(distance, candidates, generator)
        closer = torch.minimum(_distances(features, drawn, chunk), distance[:, None])
        best = int(closer.double().sum(0).argmin())
        chosen.append(int(drawn[best]))
        distance = closer[:, best].clone()
    return _directions(features[torch.tensor(chosen, device=features.device)])


class _Run:
    """The centres of one start on their way, and what the last pass over the points learnt about them."""

    def __init__(self, centroids: Tensor) -> None:
        self.centroids, self.previous, self.done = centroids, math.inf, False
        self.statistics = _Statistics(centroids)

    def move(self, tolerance: float) -> None:
        """Move the centres to the means, or be done where the inertia falls no more."""
        statistics = self.statistics
        self.done = statistics.inertia >= self.previous * (1 - tolerance) and not statistics.can_reseed
        if not self.done:
            self.previous = statistics.inertia
            self.centroids = statistics.reseeded(statistics.means(self.centroids))


def _lloyd(
    chunks: Iterable[Tensor], runs: Sequence[_Run], iterations: int, tolerance: float
) -> Generator[None, None, None]:
    """Move the centres of some runs, side by side, by Lloyd's iterations; yield after each, done or left out."""
    for _ in range(iterations):
        _learn(chunks, [run for run in runs if not run.done])
        for run in runs:
            if not run.done:
                run.move(tolerance)
        yield
    _learn(chunks, [run for run in runs if not run.done])


def _learn(chunks: Iterable[Tensor], runs: Sequence[_Run]) -> None:
    """Pass over unit points (n, C) once for all runs: one product of more columns takes less than one for each run."""
    if not runs:
        return
    for run in runs:
        run.statistics = _Statistics(run.centroids)
    centroids = torch.cat([run.centroids for run in runs])
    for points in chunks:
        similarity = (points @ centroids.T).view(len(points), len(runs), -1)
        cosine, labels = similarity.max(2)
        members = similarity.zero_().scatter_(2, labels[:, :, None], 1)
        sums = (members.flatten(1).T @ points).view(len(runs), -1, points.shape[1]).cpu().double()
        counts = members.sum(0).cpu().double()
        for number, run in enumerate(runs):
            run.statistics.add(points, cosine[:, number], sums[number], counts[number])


class _Statistics:
    """What one pass over the points learns about k centres: sums, counts, inertia and the farthest points.

    Sums live in float64 on the CPU; a one-hot product forms them, since it is deterministic on every device.
    """

    def __init__(self, centroids: Tensor) -> None:
        k, dim = centroids.shape
        self.k = k
        self.sums = torch.zeros(k, dim, dtype=torch.float64)
        self.counts = torch.zeros(k, dtype=torch.float64)
        self.distance = 0.0
        self.far = centroids.new_zeros(0, dim)
        self.far_distance = centroids.new_zeros(0)

    @property
    def inertia(self) -> float:
        return self.distance / float(self.counts.sum())

    @property
    def can_reseed(self) -> bool:
        """Whether a centre is empty and some point lies away from its own centre."""
        return bool((self.counts == 0).any()) and float(self.far_distance.max()) > 1e-6

    def add(self, points: Tensor, cosine: Tensor, sums: Tensor, counts: Tensor) -> None:
        """Add points (n, C), the cosine of each to its centre, and sums (k, C) and counts (k,) by centre."""
        self.sums += sums
        self.counts += counts
        distance = (1 - cosine).clamp_min(0)
        self.distance += float(distance.cpu().double().sum())

        top = distance.topk(min(self.k, len(points)))
        merged = torch.cat([self.far_distance, top.values]).topk(min(self.k, len(self.far) + len(top.values)))
        self.far = torch.cat([self.far, points[top.indices]])[merged.indices]
        self.far_distance = merged.values

    def means(self, centroids: Tensor) -> Tensor:
        """Return the unit means (k, C); a centre without points, or with points that cancel, stays."""
        length = self.sums.norm(dim=1, keepdim=True)
        moved = (self.sums / length.clamp_min(1e-12)).to(torch.float32).to(centroids.device)
        return torch.where((length > 1e-9).to(centroids.device), moved, centroids)

    def reseeded(self, centroids: Tensor) -> Tensor:
        """Return the centres (k, C) with each empty one moved to a point far from its own centre."""
        empty = (self.counts == 0).nonzero()[:, 0].tolist()
        if not empty or not self.can_reseed:
            return centroids
        centroids = centroids.clone()
        for point, cluster in zip(self.far, empty, strict=False):
            centroids[cluster] = _directions(point[None])[0]
        return centroids


def _unit(points: Tensor) -> Tensor:
    """Return points (n, C) as unit float32, without a copy if they are; a zero vector stays zero."""
    points = points.float()
    length = torch.linalg.vector_norm(points, dim=1)
    if bool(((length - 1).abs() < 1e-5).all()):
        return points
    return F.normalize(points, dim=1)


def _directions(centres: Tensor) -> Tensor:
    """Return centres (k, C) of unit length; a zero vector becomes the diagonal."""
    unit = _unit(centres)
    return torch.where((unit == 0).all(1, keepdim=True), centres.shape[1] ** -0.5, unit)


def _distances(features: Tensor, indices: Tensor, chunk: int) -> Tensor:
    """Return 1 - cosine (N, m) between all unit points and the m points at ``indices``."""
    columns = features[indices.to(features.device)].T
    return torch.cat([(1 - block @ columns).clamp_min(0) for block in torch.split(features, chunk)])


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` indices in proportion to ``weights`` (N,), evenly if all are nearly 0.

    torch.multinomial would stop at 2^24 weights.
    """
    cumulative = weights.cpu().double().cumsum(0)
    total = float(cumulative[-1])
    if total <= 1e-6 * len(weights):
        return torch.randint(len(weights), (count,), generator=generator)
    drawn = torch.rand(count, dtype=torch.float64, generator=generator) * total
    return torch.searchsorted(cumulative, drawn, right=True).clamp_max(len(weights) - 1)


def _check_counts(k: int, restarts: int) -> None:
    if k < 1:
        raise UsageError(f"k-means needs at least one cluster, got {k}: raise --classes.")
    if restarts < 1:
        raise UsageError(f"k-means needs at least one run, got {restarts}: raise restarts.")


def _check_points(features: Tensor, k: int) -> None:
    if features.ndim != 2:
        raise UnsupsegError(
            f"k-means needs features of shape (points, channels), found {tuple(features.shape)}."
        )
    if k > len(features):
        raise UsageError(
            f"k-means cannot find {k} clusters in {len(features)} points: lower --classes, raise the sample "
            "or give more images."
        )


def _check_finite(features: Tensor) -> None:
    invalid = int((~torch.isfinite(features).all(1)).sum())
    if invalid:
        raise UnsupsegError(
            f"{invalid} of {len(features)} features hold NaN or infinity, which k-means cannot cluster: extract "
            "them again at a higher precision (--precision float32) and check the backbone's weights."
        )
