"""The number of clusters of some points: the larger of two numbers, from a silhouette and from a spectrum.

Few coarse groups stand apart best, so that the K of the highest mean silhouette is far below the number of classes that
people see. From there it falls slowly while further clusters still are groups of their own: the first number is the
largest K that keeps a share of the highest value. With some features that is too few as well, and the second number is
a floor: as many classes as principal components hold a share of the variance.

Source: Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis", J. Comput.
Appl. Math. 20 (1987); Jolliffe, "Principal component analysis" (2002), section 6.1.1. The rule that joins them and its
shares are ours: `benchmarks/class_number.py` compares it with others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core import seeds
from unsupseg_cli.core.progress import Reporter, Silent

SHARE, VARIANCE = 0.9, 0.7
"""Of the highest silhouette, that the number of classes keeps, and of the variance, that as many components hold."""
_JUDGED = 2000  # points that the silhouette is taken of: it compares all pairs
_RESTARTS, _ITERATIONS = 2, 25


@dataclass(frozen=True, eq=False)
class Scan:
    """The clusterings of some points into K clusters, for numbers K in a range, ascending.

    ``silhouette`` is the mean over the points, in [-1, 1]; ``inertia`` the mean of 1 - cosine to the nearest centre;
    ``smallest`` the share of the points in the smallest cluster; ``centroids`` the centres (K, C). ``components`` is
    the number of principal components, within the range, that hold the share `VARIANCE`.
    """

    classes: tuple[int, ...]
    silhouette: tuple[float, ...]
    inertia: tuple[float, ...]
    smallest: tuple[float, ...]
    centroids: tuple[Tensor, ...]
    components: int

    @property
    def best(self) -> int:
        """The number of classes: by the silhouette, and at least the number of components."""
        return max(largest_of_share(self.classes, self.silhouette), self.components)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each K, as plain values."""
        names = ("classes", "silhouette", "inertia", "smallest")
        columns = (self.classes, self.silhouette, self.inertia, self.smallest)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def numbers(low: int, high: int) -> tuple[int, ...]:
    """Return the numbers of clusters that are tried: all up to 12, then steps of about a sixth, and the last."""
    tried = [low]
    while tried[-1] < high:
        tried.append(min(high, tried[-1] + max(1, tried[-1] // 6)))
    return tuple(tried)


def scan(points: Tensor, low: int, high: int, *, seed: int, reporter: Reporter | None = None) -> Scan:
    """Cluster points (n, C), of any length, into numbers of clusters from ``low`` to ``high``, see `numbers`.

    Raises:
        UsageError: there are fewer points than clusters.
        UnsupsegError: a point is NaN or infinite.
    """
    points = F.normalize(points.float(), dim=1)
    generator = torch.Generator().manual_seed(seeds.stream(seed, "judged"))
    judged = torch.randperm(len(points), generator=generator)[:_JUDGED].to(points.device)
    distance = cosine_distances(points[judged])
    floor = min(max(low, components(points, VARIANCE)), high)
    tried, rows = sorted({*numbers(low, high), floor}), []
    for k in (reporter or Silent()).track(tried, "number of classes", total=len(tried)):
        result = spherical_kmeans(
            points, k, restarts=_RESTARTS, iterations=_ITERATIONS, seed=seeds.stream(seed, "scan", k)
        )
        smallest = float(result.labels.bincount(minlength=k).min()) / len(points)
        labels = result.labels[judged].cpu().numpy()
        rows.append((k, silhouette(distance, labels), result.inertia, smallest, result.centroids.cpu()))
    classes, values, inertia, shares, centroids = zip(*rows, strict=True)
    return Scan(classes, values, inertia, shares, centroids, floor)


def components(points: Tensor, share: float) -> int:
    """Return the least number of principal components of points (n, C) that hold a share of the variance."""
    variance = torch.linalg.eigvalsh(torch.cov(points.cpu().double().T)).flip(0).clamp_min(0)
    total = float(variance.sum())
    if total <= 1e-9:
        return 1
    return int((variance.cumsum(0) < share * total).sum()) + 1


def largest_of_share(classes: tuple[int, ...], values: tuple[float, ...], share: float = SHARE) -> int:
    """Return the largest K whose value is at least a share of the highest; the least K where none is above 0."""
    highest = max(values)
    if highest <= 0:
        return min(classes)
    return max(k for k, value in zip(classes, values, strict=True) if value >= share * highest)


def cosine_distances(points: Tensor) -> NDArray[np.float64]:
    """Return 1 - cosine (n, n) between unit points (n, C), 0 on the diagonal."""
    distance = (1 - points @ points.T).clamp_min(0).fill_diagonal_(0)
    values: NDArray[np.float64] = distance.cpu().double().numpy()
    return values


def silhouette(distance: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the mean silhouette of a clustering (n,) in [-1, 1]; 0 where all points are in one cluster or apart.

    Args:
        distance: between all points, (n, n).
        labels: the cluster of each.
    """
    from sklearn.metrics import silhouette_score

    if not 1 < len(np.unique(labels)) < len(labels):
        return 0.0
    return float(silhouette_score(distance, labels, metric="precomputed"))
