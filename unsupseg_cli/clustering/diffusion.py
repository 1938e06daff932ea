"""Clustering of points that were averaged along the edges of their graph.

A step moves each point half the way to the mean of its neighbours: what a class has in common stays, what tells its
points apart fades, until classes that touch become one. How many steps are right is told by the modularity of the
clusters on the graph.

Source: Zhang, Liu, Li and Wu, "Attributed graph clustering via adaptive graph convolution", IJCAI 2019 (the filter
I - L/2 of any order, and an order chosen by the clusters). Modularity as what chooses, and k-means, are ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags
from torch import Tensor

from unsupseg_cli.clustering.spectral import GraphClusters, modularity
from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core.progress import Reporter, Silent

STEPS = (1, 2, 4, 8, 16, 32)
"""Numbers of steps that are tried (ours)."""


def diffused_clusters(
    points: Tensor,
    affinity: csr_matrix,
    k: int,
    *,
    restarts: int,
    iterations: int,
    seed: int,
    reporter: Reporter | None = None,
) -> GraphClusters:
    """Cluster points after each number of steps; keep the clusters of greatest modularity.

    Args:
        points: unit points (n, C), at least ``k``.
        affinity: symmetric, (n, n), at least 0.
        k: number of clusters.
        restarts: of k-means.
        iterations: at most, of k-means.
        seed: of k-means.
        reporter: is told the progress.
    """
    best: GraphClusters | None = None
    for steps, moved in (reporter or Silent()).track(
        diffused(points, affinity), "diffusion", total=len(STEPS)
    ):
        result = spherical_kmeans(moved, k, restarts=restarts, iterations=iterations, seed=seed)
        found = GraphClusters(result.labels, modularity(affinity, result.labels), steps)
        best = found if best is None or found.modularity > best.modularity else best
    assert best is not None
    return best


def diffused(points: Tensor, affinity: csr_matrix) -> Iterator[tuple[int, Tensor]]:
    """Yield each of `STEPS` and the points (n, C) after as many; a point without an edge stays where it is."""
    degrees = np.asarray(affinity.sum(1)).ravel()
    walk = (
        diags(1 / np.where(degrees > 0, degrees, 1)) @ affinity + diags((degrees <= 0).astype(float))
    ).tocsr()
    half = walk.astype(np.float32) * np.float32(0.5)
    moved = points.cpu().numpy()
    for step in range(1, STEPS[-1] + 1):
        moved = 0.5 * moved + half @ moved
        if step in STEPS:
            yield step, torch.from_numpy(moved).to(points.device)
