"""Which class a cluster stands for: the rules that match clusters to classes."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from unsupseg_cli.core.errors import UnsupsegError, UsageError, did_you_mean

MatchingRule = Literal["hungarian", "iou", "majority", "stego-extra", "primaps-extra"]
RULES: tuple[MatchingRule, ...] = get_args(MatchingRule)


def match(matrix: NDArray[np.int64], rule: MatchingRule = "hungarian") -> NDArray[np.int64]:
    """Assign clusters to classes.

    Rules:
        hungarian: one-to-one, the most correctly labelled pixels over the data set (STEGO's metric).
        iou: one-to-one, the largest sum of the pairs' IoU (MaskDistill's metric for pixels).
        majority: many-to-one, each cluster takes its most frequent class, the first of equals. Scores grow
            with the number of clusters and are not comparable with the one-to-one rules.
        stego-extra: hungarian among the first clusters, as many as classes; the pixels of the others are not scored
            (`scored`), which makes scores higher (STEGO's metric with extra clusters).
        primaps-extra: hungarian, then each cluster without a class takes its most frequent one (PriMaPs-EM's metric
            with extra clusters).

    Args:
        matrix: counts (clusters, classes), as ``Confusion.matrix``.
        rule: one of ``RULES``.

    Returns:
        int64 (clusters,): each cluster's class, -1 if it has none. With one-to-one rules and more clusters
        than classes the rest is -1; with ``majority`` and ``primaps-extra`` a cluster without a labelled pixel is.

    Raises:
        UnsupsegError: no pixel was counted.
        UsageError: an unknown rule.
    """
    if rule not in RULES:
        raise UsageError(f"Unknown matching rule '{rule}'{did_you_mean(rule, RULES)}")
    require_labelled(matrix)
    most_frequent = np.where(matrix.any(1), matrix.argmax(1), -1).astype(np.int64)
    if rule == "majority":
        return most_frequent
    if rule == "stego-extra":
        matrix = matrix[: matrix.shape[1]]
    assignment = np.full(len(most_frequent), -1, np.int64)
    rows, columns = linear_sum_assignment(_pair_iou(matrix) if rule == "iou" else matrix, maximize=True)
    assignment[rows] = columns
    return np.where(assignment < 0, most_frequent, assignment) if rule == "primaps-extra" else assignment


def scored(matrix: NDArray[np.int64], rule: str) -> NDArray[np.int64]:
    """Return the counts (clusters, classes) that a rule scores: all, but for ``stego-extra``, which drops clusters.

    Raises:
        UnsupsegError: every labelled pixel is in a cluster that is dropped.
    """
    if rule != "stego-extra" or len(matrix) <= matrix.shape[1]:
        return matrix
    kept = matrix.copy()
    kept[matrix.shape[1] :] = 0
    if matrix.any() and not kept.any():
        raise UnsupsegError(
            "Every labelled pixel is in an extra cluster, which stego-extra drops; score with another --matching."
        )
    return kept


def require_labelled(matrix: NDArray[np.int64]) -> None:
    """Raise UnsupsegError unless the matrix (clusters, classes) counted a labelled pixel."""
    if not matrix.any():
        raise UnsupsegError(
            "No labelled pixel was found, so there is nothing to score: expected label ids from 0 to "
            f"{matrix.shape[1] - 1}, found void only; check the data set's label mapping and split."
        )


def _pair_iou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the IoU (clusters, classes) of every cluster with every class; 0 where both are empty."""
    union = matrix.sum(1, keepdims=True) + matrix.sum(0, keepdims=True) - matrix
    iou: NDArray[np.float64] = matrix / np.maximum(union, 1)
    return iou
