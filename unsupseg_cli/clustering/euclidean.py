"""Euclidean k-means of scikit-learn, start by start, so that its progress is told."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from unsupseg_cli.core.progress import Reporter, Silent


def euclidean_kmeans(
    points: NDArray[np.float32],
    k: int,
    *,
    restarts: int,
    iterations: int = 300,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> KMeans:
    """Return k-means of points (n, C), fitted from several k-means++ starts, of which the least inertia counts.

    All starts draw from one stream: the result is that of ``KMeans(n_init=restarts, random_state=seed)``.

    Args:
        points: as many as clusters, or more.
        k: number of clusters.
        restarts: runs from different starts.
        iterations: most passes over the points per run; 300 is scikit-learn's default.
        seed: of all random choices, below 2^32.
        reporter: is told the starts.
    """
    draw, best = np.random.RandomState(seed), None
    for _ in (reporter or Silent()).track(range(restarts), f"k-means, {k} centres: starts", total=restarts):
        with warnings.catch_warnings():
            # Of fewer distinct points than clusters, which are told by the clusters that are left empty.
            warnings.simplefilter("ignore", ConvergenceWarning)
            run = KMeans(k, n_init=1, max_iter=iterations, random_state=draw).fit(points)
        if best is None or run.inertia_ < best.inertia_:
            best = run
    assert best is not None
    return best
