"""Counting: how many labelled pixels of each class fell into each cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.metrics.matching import MatchingRule, match, scored
from unsupseg_cli.metrics.scores import Scores, score


class Confusion:
    """Pixel counts by cluster and class, accumulated over images.

    Attributes:
        matrix: int64 (clusters, classes); entry [k, c] counts the pixels of class c predicted as cluster k.
    """

    def __init__(self, clusters: int, classes: int) -> None:
        if clusters < 1 or classes < 1:
            raise UsageError(
                f"A confusion needs at least one cluster and one class, got {clusters}, {classes}."
            )
        self.matrix: NDArray[np.int64] = np.zeros((clusters, classes), np.int64)

    @property
    def clusters(self) -> int:
        """Number of predicted clusters."""
        return int(self.matrix.shape[0])

    @property
    def classes(self) -> int:
        """Number of classes of the label space."""
        return int(self.matrix.shape[1])

    def update(self, prediction: ArrayLike, target: ArrayLike) -> None:
        """Count the pixels of one or more images.

        Args:
            prediction: integers in [0, clusters), any shape.
            target: integers of the same shape; VOID (-1) and any other value outside [0, classes) is void and
                leaves both sides.

        Raises:
            UnsupsegError: shapes differ, values are no integers, or a labelled pixel's prediction is out of
                range.
        """
        predicted, truth = _integers(prediction, "prediction"), _integers(target, "label map")
        if predicted.shape != truth.shape:
            raise UnsupsegError(
                f"A prediction of shape {predicted.shape} cannot be scored against a label map of shape "
                f"{truth.shape}: bring both to the protocol's size first."
            )
        labelled = (truth >= 0) & (truth < self.classes)
        if not labelled.all():
            predicted, truth = predicted[labelled], truth[labelled]
        if not predicted.size:
            return
        low, high = int(predicted.min()), int(predicted.max())
        if low < 0 or high >= self.clusters:
            raise UnsupsegError(
                f"A prediction holds the value {low if low < 0 else high}, expected 0 to {self.clusters - 1} "
                "on every labelled pixel: predictions are never dropped, so each pixel needs a cluster."
            )
        index = predicted.astype(np.intp).ravel() * self.classes + truth.astype(np.intp, copy=False).ravel()
        self.matrix += np.bincount(index, minlength=self.matrix.size).reshape(self.matrix.shape)

    def compute(
        self, rule: MatchingRule = "hungarian", assignment: NDArray[np.int64] | None = None
    ) -> Scores:
        """Match clusters to classes (or take a given ``assignment``) and score the pixels seen so far.

        Raises:
            UnsupsegError: no labelled pixel was seen.
        """
        if assignment is not None:
            return score(self.matrix, assignment)
        return score(scored(self.matrix, rule), match(self.matrix, rule))


def _integers(values: ArrayLike, name: str) -> NDArray[np.integer]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise UnsupsegError(f"A {name} must hold integers, found {array.dtype}.")
    return array
