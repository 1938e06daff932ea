"""Which class a cluster stands for: the rules that match clusters to classes."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from unsupseg_cli.core.errors import UnsupsegError, UsageError, did_you_mean

MatchingRule = Literal["hungarian", "iou", "majority"]
RULES: tuple[MatchingRule, ...] = get_args(MatchingRule)


def match(matrix: NDArray[np.int64], rule: MatchingRule = "hungarian") -> NDArray[np.int64]:
    """Assign clusters to classes.

    Rules:
        hungarian: one-to-one, the most correctly labelled pixels over the data set (STEGO's metric).
        iou: one-to-one, the largest sum of the pairs' IoU (MaskDistill's metric for pixels).
        majority: many-to-one, each cluster takes its most frequent class, the first of equals. Scores grow
            with the number of clusters and are not comparable with the one-to-one rules.

    Args:
        matrix: counts (clusters, classes), as ``Confusion.matrix``.
        rule: one of ``RULES``.

    Returns:
        int64 (clusters,): each cluster's class, -1 if it has none. With one-to-one rules and more clusters
        than classes the rest is -1; with ``majority`` a cluster without a labelled pixel is.

    Raises:
        UnsupsegError: no pixel was counted.
        UsageError: an unknown rule.
    """
    require_labelled(matrix)
    if rule == "majority":
        return np.where(matrix.any(1), matrix.argmax(1), -1).astype(np.int64)
    if rule == "hungarian":
        gain: NDArray[np.int64] | NDArray[np.float64] = matrix
    elif rule == "iou":
        gain = _pair_iou(matrix)
    else:
        raise UsageError(f"Unknown matching rule '{rule}'{did_you_mean(rule, RULES)}")
    assignment = np.full(len(matrix), -1, np.int64)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    assignment[rows] = columns
    return assignment


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
