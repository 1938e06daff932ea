"""Lloyd's iterations of spherical k-means: passes over unit points, which move the centres to the means.

A pass learns sums, which are kept in float64 on the CPU: of points in memory, or of parts that are learnt by
themselves and put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.core.errors import UnsupsegError

CHUNK = 32_768


class Run:
    """The centres of one start on their way, and what the last pass over the points learnt about them."""

    def __init__(self, centroids: Tensor) -> None:
        self.centroids, self.previous, self.done = centroids, math.inf, False
        self.statistics = Statistics(centroids)

    def move(self, tolerance: float) -> None:
        """Move the centres to the means, or be done where the inertia falls no more."""
        statistics = self.statistics
        self.done = statistics.inertia >= self.previous * (1 - tolerance) and not statistics.can_reseed
        if not self.done:
            self.previous = statistics.inertia
            self.centroids = statistics.reseeded(statistics.means(self.centroids))


def lloyd(
    learn_of: Callable[[Sequence[Run]], None], runs: Sequence[Run], iterations: int, tolerance: float
) -> Generator[None, None, None]:
    """Move the centres of some runs by Lloyd's iterations; yield after each, done or left out.

    ``learn_of`` passes over all points and leaves what it learns in ``statistics`` of the runs it is given, if any.
    """
    for _ in range(iterations):
        learn_of([run for run in runs if not run.done])
        for run in runs:
            if not run.done:
                run.move(tolerance)
        yield
    learn_of([run for run in runs if not run.done])


def learn(chunks: Iterable[Tensor], runs: Sequence[Run]) -> None:
    """Pass over chunks of unit points (n, C): one product of more columns takes less than one for each run."""
    if not runs:
        return
    for run in runs:
        run.statistics = Statistics(run.centroids)
    centroids = torch.cat([run.centroids for run in runs])
    for points in chunks:
        similarity = (points @ centroids.T).view(len(points), len(runs), -1)
        cosine, labels = similarity.max(2)
        members = similarity.zero_().scatter_(2, labels[:, :, None], 1)
        sums = (members.flatten(1).T @ points).view(len(runs), -1, points.shape[1]).cpu().double()
        counts = members.sum(0).cpu().double()
        for number, run in enumerate(runs):
            run.statistics.add(points, cosine[:, number], sums[number], counts[number])


class Statistics:
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
        """The mean of 1 - cosine of a point to its nearest centre."""
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
        self._keep_farthest(points[top.indices], top.values)

    def merge(self, part: Mapping[str, Tensor]) -> None:
        """Add what a pass over other points learnt about the same centres, as `tensors` gave it."""
        self.sums += part["sums"]
        self.counts += part["counts"]
        self.distance += float(part["distance"])
        self._keep_farthest(part["far"].to(self.far), part["far_distance"].to(self.far_distance))

    def tensors(self) -> dict[str, Tensor]:
        """Return everything on the CPU, for `merge`."""
        return {
            "sums": self.sums,
            "counts": self.counts,
            "distance": torch.tensor(self.distance, dtype=torch.float64),
            "far": self.far.cpu(),
            "far_distance": self.far_distance.cpu(),
        }

    def _keep_farthest(self, points: Tensor, distances: Tensor) -> None:
        """Keep of the farthest points and these (m, C) the k farthest."""
        farthest = torch.cat([self.far_distance, distances]).topk(min(self.k, len(self.far) + len(points)))
        self.far = torch.cat([self.far, points])[farthest.indices]
        self.far_distance = farthest.values

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
            centroids[cluster] = as_directions(point[None])[0]
        return centroids


def as_unit(points: Tensor) -> Tensor:
    """Return points (n, C) as unit float32, without a copy if they are; a zero vector stays zero."""
    points = points.float()
    length = torch.linalg.vector_norm(points, dim=1)
    if bool(((length - 1).abs() < 1e-5).all()):
        return points
    return F.normalize(points, dim=1)


def as_directions(centres: Tensor) -> Tensor:
    """Return centres (k, C) of unit length; a zero vector becomes the diagonal."""
    points = as_unit(centres)
    return torch.where((points == 0).all(1, keepdim=True), centres.shape[1] ** -0.5, points)


def check_finite(features: Tensor) -> None:
    """Raise UnsupsegError for features (n, C) with NaN or infinite values."""
    invalid = int((~torch.isfinite(features).all(1)).sum())
    if invalid:
        raise UnsupsegError(
            f"{invalid} of {len(features)} features hold NaN or infinity, which k-means cannot cluster: extract "
            "them again at a higher precision (--precision fp32) and check the backbone's weights."
        )
