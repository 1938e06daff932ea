"""Spherical k-means: clusters of directions, with the mean of 1 - cosine as inertia.

Features may have any length: those that are not unit float32 already are copied and normalised once. Beyond
that, memory is a few blocks of a chunk of points by the centres of all runs side by side. Random numbers come from
the CPU: a seed means the same start on every device.

Source: Dhillon and Modha, "Concept decompositions for large sparse text data using clustering", Machine
Learning 42 (2001); k-means++ of Arthur and Vassilvitskii (SODA 2007), whose squared distance between unit
vectors is 2 (1 - cosine).
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unsupseg_cli.clustering.lloyd import CHUNK, Run, as_directions, as_unit, check_finite, learn, lloyd
from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Reporter, Silent

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
        check_finite(block)
    features = as_unit(features)
    chunks = torch.split(features, chunk)
    together = max(1, _CENTRES_AT_ONCE // k)
    groups = [range(first, min(first + together, restarts)) for first in range(0, restarts, together)]
    runs: list[Run] = []

    def passes() -> Generator[None, None, None]:
        for group in groups:
            starts = (seeds.stream(seed, "restart", restart) for restart in group)
            runs.extend(Run(kmeans_plus_plus(features, k, seed=start, chunk=chunk)) for start in starts)
            yield from lloyd(partial(learn, chunks), runs[group.start : group.stop], iterations, tolerance)

    total = len(groups) * iterations
    for _ in (reporter or Silent()).track(passes(), f"k-means, {k} centres", total=total):
        pass
    inertias = tuple(run.statistics.inertia for run in runs)
    best = min(runs, key=lambda run: run.statistics.inertia)
    labels = nearest(features, best.centroids, chunk=chunk)[0]
    return KMeansResult(best.centroids, best.statistics.inertia, inertias, labels)


def nearest(features: Tensor, centroids: Tensor, *, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Return the nearest centre (N,) int64 of each point (N, C) and the cosine to it (N,), in [-1, 1]."""
    centres = as_directions(centroids)
    parts = [(as_unit(block) @ centres.T).max(1) for block in torch.split(features, chunk)]
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
    features = as_unit(features)
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
    return as_directions(features[torch.tensor(chosen, device=features.device)])


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
