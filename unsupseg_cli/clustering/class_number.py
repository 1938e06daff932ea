"""The number of clusters of some points: spherical k-means for numbers K in a range, judged by the mean silhouette.

Few coarse groups stand apart best, so that the K of the highest silhouette is far below the number of classes that
people see. From there it falls slowly while further clusters still are groups of their own, and the rule takes the
largest K that keeps a share of the highest value.

Source: Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis", J. Comput.
Appl. Math. 20 (1987). The share is ours: `benchmarks/class_number.py` compares it with other rules.
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

SHARE = 0.9
"""Of the highest silhouette, that the number of classes keeps."""
_JUDGED = 2000  # points that the silhouette is taken of: it compares all pairs
_RESTARTS, _ITERATIONS = 2, 25


@dataclass(frozen=True, eq=False)
class Scan:
    """The clusterings of some points into K clusters, for numbers K in a range, ascending.

    ``silhouette`` is the mean over the points, in [-1, 1]; ``inertia`` the mean of 1 - cosine to the nearest centre;
    ``smallest`` the share of the points in the smallest cluster; ``centroids`` the centres (K, C).
    """

    classes: tuple[int, ...]
    silhouette: tuple[float, ...]
    inertia: tuple[float, ...]
    smallest: tuple[float, ...]
    centroids: tuple[Tensor, ...]

    @property
    def best(self) -> int:
        """The number of classes, see `largest_of_share`."""
        return largest_of_share(self.classes, self.silhouette)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each K, as plain values."""
        names = ("classes", "silhouette", "inertia", "smallest")
        columns = (self.classes, self.silhouette, self.inertia, self.smallest)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def numbers(low: int, high: int) -> tuple[int, ...]:
    """Return the numbers of clusters that are tried: all up to 12, then steps of about a sixth, and the last."""
    found = [low]
    while found[-1] < high:
        found.append(min(high, found[-1] + max(1, found[-1] // 6)))
    return tuple(found)


def scan(points: Tensor, low: int, high: int, *, seed: int, reporter: Reporter | None = None) -> Scan:
    """Cluster points (n, C), of any length, into the `numbers` of clusters from ``low`` to ``high``.

    Raises:
        UsageError: there are fewer points than clusters.
        UnsupsegError: a point is NaN or infinite.
    """
    points = F.normalize(points.float(), dim=1)
    generator = torch.Generator().manual_seed(seeds.stream(seed, "judged"))
    judged = torch.randperm(len(points), generator=generator)[:_JUDGED].to(points.device)
    distance = cosine_distances(points[judged])
    tried, rows = numbers(low, high), []
    for k in (reporter or Silent()).track(tried, "number of classes", total=len(tried)):
        result = spherical_kmeans(
            points, k, restarts=_RESTARTS, iterations=_ITERATIONS, seed=seeds.stream(seed, "scan", k)
        )
        smallest = float(result.labels.bincount(minlength=k).min()) / len(points)
        labels = result.labels[judged].cpu().numpy()
        rows.append((k, silhouette(distance, labels), result.inertia, smallest, result.centroids.cpu()))
    classes, values, inertia, shares, centroids = zip(*rows, strict=True)
    return Scan(classes, values, inertia, shares, centroids)


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
