"""Accuracy and IoU of a confusion whose clusters were matched to classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.metrics.matching import require_labelled


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one evaluation; all rates lie in [0, 1].

    Attributes:
        accuracy: share of labelled pixels whose class is right.
        miou: mean IoU of the classes that occur in truth or in the matched prediction (STEGO's rule).
        miou_gt: mean IoU of the classes that occur in truth.
        miou_all: mean over all classes, an absent one counting 0.
        iou: float64 (classes,), TP / (TP + FP + FN); NaN for a class in neither truth nor prediction.
        pixels: int64 (classes,), labelled pixels of each class.
        confusion: int64 (classes, classes + 1) by [true class, predicted class]; the last column holds the
            pixels of unmatched clusters, which are errors.
        assignment: int64 (clusters,), each cluster's class or -1.
    """

    accuracy: float
    miou: float
    miou_gt: float
    miou_all: float
    iou: NDArray[np.float64]
    pixels: NDArray[np.int64]
    confusion: NDArray[np.int64]
    assignment: NDArray[np.int64]

    @property
    def present(self) -> int:
        """Number of classes that occur in truth."""
        return int((self.pixels > 0).sum())

    def of(self, classes: Sequence[int]) -> dict[str, float | None]:
        """Return ``accuracy`` and ``miou`` of some classes alone, things say; None where nothing tells.

        The accuracy is the share of their labelled pixels whose class is right, the mIoU the mean over those of
        them that occur in truth or prediction, every other class counting as an error.
        """
        chosen = np.asarray(classes, np.intp)
        pixels, iou = self.pixels[chosen].sum(), self.iou[chosen]
        hits = self.confusion.diagonal()[chosen].sum()
        return {
            "accuracy": float(hits / pixels) if pixels else None,
            "miou": None if np.isnan(iou).all() else float(np.nanmean(iou)),
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; the IoU of an absent class is None."""
        return {
            "accuracy": self.accuracy,
            "miou": self.miou,
            "miou_gt": self.miou_gt,
            "miou_all": self.miou_all,
            "classes_present": self.present,
            "labelled_pixels": int(self.pixels.sum()),
            "iou": [None if np.isnan(value) else float(value) for value in self.iou],
            "pixels": self.pixels.tolist(),
            "confusion": self.confusion.tolist(),
            "assignment": self.assignment.tolist(),
        }


def score(matrix: NDArray[np.int64], assignment: NDArray[np.int64]) -> Scores:
    """Score counts (clusters, classes) under an assignment (clusters,) of clusters to classes.

    Pixels of an unmatched cluster (-1) are never dropped: they lower the accuracy and are false negatives of
    their true class. Several clusters may share a class.

    Raises:
        UnsupsegError: no pixel was counted.
        UsageError: the assignment does not fit the matrix.
    """
    require_labelled(matrix)
    classes = matrix.shape[1]
    assignment = np.asarray(assignment)
    if assignment.shape != matrix.shape[:1] or assignment.dtype.kind not in "iu":
        raise UsageError(
            f"The assignment must hold one class for each of the {len(matrix)} clusters, found "
            f"{assignment.dtype} of shape {assignment.shape}: it belongs to another model."
        )
    if assignment.min() < -1 or assignment.max() >= classes:
        raise UsageError(
            f"The assignment names classes from {assignment.min()} to {assignment.max()}, expected -1 (none) "
            f"to {classes - 1}: it belongs to another label space."
        )
    confusion = np.zeros((classes + 1, classes), np.int64)
    np.add.at(confusion, np.where(assignment < 0, classes, assignment), matrix)
    confusion = np.ascontiguousarray(confusion.T)

    hits, pixels = confusion.diagonal(), confusion.sum(1)
    union = pixels + confusion[:, :classes].sum(0) - hits
    iou = np.where(union > 0, hits / np.maximum(union, 1), np.nan)
    return Scores(
        accuracy=float(hits.sum() / pixels.sum()),
        miou=float(iou[union > 0].mean()),
        miou_gt=float(iou[pixels > 0].mean()),
        miou_all=float(np.nan_to_num(iou).mean()),
        iou=iou,
        pixels=pixels,
        confusion=confusion,
        assignment=assignment.astype(np.int64),
    )
