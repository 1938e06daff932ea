"""Spectral clustering of points by their nearest neighbours in other groups.

Two tokens of one image are alike because they show the same place in the same light; two of different images, because
they show the same thing. So a point's neighbours are looked for outside its own group: with tokens that carry much of
their image the clusters are images otherwise.

Source: Ng, Jordan and Weiss, "On spectral clustering: analysis and an algorithm", NeurIPS 2001 (normalised affinity,
rows of its first eigenvectors at length 1, k-means of these). The restriction to other groups is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix, diags, eye
from scipy.sparse.linalg import eigsh
from torch import Tensor

from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core.progress import Reporter, Silent

OWN_IMAGE = 0.57
"""`share_in_own_group` of tokens and images above which diffused tokens were better (docs/choices.md)."""

_BLOCK = 2048  # rows that are compared with all points at a time
_GROUPS, _OF_GROUP, _LOOKS = 48, 16, 8  # of `share_in_own_group`
_LEAST = 1e-6  # weight of the edge of each point to itself, so that none is without an edge


class GraphClusters(NamedTuple):
    """The cluster of each point (n,), how good they are on the graph, and the steps of diffusion before them."""

    labels: Tensor
    modularity: float
    steps: int = 0


def spectral_clusters(
    affinity: csr_matrix,
    k: int,
    *,
    restarts: int,
    iterations: int,
    seed: Callable[[str], int],
    reporter: Reporter | None = None,
) -> GraphClusters:
    """Cluster points by the first eigenvectors of their graph.

    Args:
        affinity: symmetric, (n, n), at least 0, of more than ``k + 1`` points.
        k: number of clusters.
        restarts: of k-means on the eigenvectors.
        iterations: at most, of k-means.
        seed: gives a seed for each purpose.
        reporter: is told the progress.
    """
    embedding = spectral_embedding(affinity, k, seed("eigenvectors"))
    result = spherical_kmeans(
        embedding, k, restarts=restarts, iterations=iterations, seed=seed("kmeans"), reporter=reporter
    )
    return GraphClusters(result.labels, modularity(affinity, result.labels))


def neighbours_of_others(
    points: Tensor, groups: Tensor, count: int, reporter: Reporter | None = None
) -> tuple[Tensor, Tensor, float]:
    """Return columns and cosines (n, count) of each point's nearest points of other groups.

    Where all points are of one group, others of the same group are taken.

    Args:
        points: unit points (n, C).
        groups: the group of each, (n,).
        count: of neighbours; fewer where there are not as many points.
        reporter: is told the progress.

    Returns:
        Columns, cosines, and the share of the nearest points, groups not regarded, that lie in the point's own group.
    """
    count = min(count, len(points) - 1)
    single = bool((groups == groups[0]).all())
    columns, cosines, same = [], [], 0
    starts = range(0, len(points), _BLOCK)
    for start in (reporter or Silent()).track(starts, "neighbours", total=len(starts)):
        cosine = points[start : start + _BLOCK] @ points.T
        rows = torch.arange(len(cosine), device=points.device)
        cosine[rows, rows + start] = -torch.inf
        own = groups[start : start + _BLOCK, None] == groups
        same += int(own.gather(1, cosine.topk(count, 1).indices).sum())
        if not single:
            cosine[own] = -torch.inf
        best, nearest = cosine.topk(count, 1)
        columns.append(nearest.cpu())
        cosines.append(best.clamp_min(0).cpu())
    return torch.cat(columns), torch.cat(cosines), same / (count * len(points))


def share_in_own_group(points: Tensor, groups: Tensor, seed: int) -> float:
    """Return the share of points whose nearest one is of their own group.

    It is looked for among 16 points of each of 48 groups, several times, so that collections of any size compare: among
    more points of a group, or fewer groups, more of the nearest are its own.

    Args:
        points: unit points (n, C).
        groups: the group of each, (n,).
        seed: of the points and groups that are put together.
    """
    generator = torch.Generator().manual_seed(seed)
    of = groups.cpu()
    there = torch.from_numpy(np.unique(of.numpy()))
    shares = []
    for _ in range(_LOOKS):
        order = torch.randperm(len(of), generator=generator)
        chosen = there[torch.randperm(len(there), generator=generator)[:_GROUPS]]
        rows = torch.cat([order[of[order] == group][:_OF_GROUP] for group in chosen])
        shares.append(neighbours_of_others(points[rows], groups[rows], 1)[2])
    return sum(shares) / len(shares)


def to_affinity(columns: Tensor, weights: Tensor) -> csr_matrix:
    """Return the symmetric affinity (n, n) of neighbours: an edge is as strong as the stronger of its two directions.

    Args:
        columns: the neighbours of each point, (n, k).
        weights: of these edges, (n, k), at least 0.
    """
    count, edges = columns.shape
    pointers = np.arange(0, count * edges + 1, edges)
    directed = csr_matrix(
        (weights.double().flatten().numpy(), columns.flatten().numpy(), pointers), (count, count)
    )
    return csr_matrix(directed.maximum(directed.T))


def spectral_embedding(affinity: csr_matrix, dim: int, seed: int) -> Tensor:
    """Return the first ``dim`` eigenvectors of the normalised affinity, (n, dim) float32, rows of length 1.

    Args:
        affinity: symmetric, (n, n), at least 0.
        dim: number of eigenvectors, below n.
        seed: of the start of the iteration.
    """
    count = affinity.shape[0]
    start = np.random.default_rng(seed).normal(size=count)
    weighted = affinity + _LEAST * eye(count)
    scale = diags(np.asarray(weighted.sum(1)).ravel() ** -0.5)
    values, vectors = eigsh(scale @ weighted @ scale, k=dim, which="LA", v0=start)
    ordered = torch.from_numpy(vectors[:, np.argsort(-values)].astype(np.float32))
    return F.normalize(ordered, dim=1)


def modularity(affinity: csr_matrix, labels: Tensor) -> float:
    """Return the modularity of clusters, at most 1: edges within them, less what chance gives (Newman, PNAS 2006).

    Args:
        affinity: symmetric, (n, n), at least 0.
        labels: the cluster of each point, (n,).
    """
    of = labels.cpu().numpy()
    ends = csr_matrix((np.ones(len(of)), (np.arange(len(of)), of)))
    between = (ends.T @ affinity @ ends).toarray()
    total = between.sum()
    if total == 0:
        return 0.0
    return float(np.trace(between) / total - np.square(between.sum(1) / total).sum())


def vote(points: Tensor, sample: Tensor, labels: Tensor, classes: int, count: int) -> Tensor:
    """Return the share (n, K) of each class among the nearest of a labelled sample, weighted by the cosine.

    Args:
        points: unit points (n, C).
        sample: unit points (m, C).
        labels: the class of each of the sample, (m,).
        classes: number of classes K.
        count: of the nearest that vote.
    """
    shares = torch.zeros(len(points), classes, device=points.device)
    for start in range(0, len(points), _BLOCK):
        cosine, nearest = (points[start : start + _BLOCK] @ sample.T).topk(min(count, len(sample)), 1)
        shares[start : start + _BLOCK].scatter_add_(1, labels[nearest], cosine.clamp_min(1e-6))
    return shares / shares.sum(1, keepdim=True)
