"""Scores with a matching of its own for every image, as some training-free methods report them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.matching import MatchingRule


@dataclass(frozen=True)
class PerImageScores:
    """Means over images, each matched on its own: NOT comparable with scores of one data-set-wide matching.

    ``images`` were scored, ``skipped`` had no labelled pixel. Rates lie in [0, 1].
    """

    accuracy: float
    miou: float
    miou_gt: float
    images: int
    skipped: int
    rule: MatchingRule

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values that carry the warning along."""
        return {
            "matching": f"per-image {self.rule}",
            "comparable_with_dataset_wide": False,
            "accuracy": self.accuracy,
            "miou": self.miou,
            "miou_gt": self.miou_gt,
            "images": self.images,
            "skipped": self.skipped,
        }


class PerImage:
    """Accumulates scores of single images, each under its own matching of clusters to classes.

    The matching sees each image's labels, so that clusters need not mean the same across images: the result
    says how well regions were cut, not whether classes were discovered. Use ``Confusion`` for the latter.
    """

    def __init__(self, clusters: int, classes: int, rule: MatchingRule = "hungarian") -> None:
        self.clusters, self.classes, self.rule = clusters, classes, rule
        self.rates: list[tuple[float, float, float]] = []  # accuracy, miou and miou_gt of each image
        self.skipped = 0

    def update(self, prediction: ArrayLike, target: ArrayLike) -> None:
        """Match and score one image; arguments and errors as in ``Confusion.update``."""
        confusion = Confusion(self.clusters, self.classes)
        confusion.update(prediction, target)
        if confusion.matrix.any():
            scores = confusion.compute(self.rule)
            self.rates.append((scores.accuracy, scores.miou, scores.miou_gt))
        else:
            self.skipped += 1

    def add(self, other: PerImage) -> None:
        """Add the scores of other images."""
        self.rates += other.rates
        self.skipped += other.skipped

    def compute(self) -> PerImageScores:
        """Return the means over images.

        Raises:
            UnsupsegError: no image had a labelled pixel.
        """
        if not self.rates:
            raise UnsupsegError(
                f"None of {self.skipped} images has a labelled pixel, so there is nothing to score: check "
                "the data set's label mapping and split."
            )
        accuracy, miou, miou_gt = (float(np.mean(rates)) for rates in zip(*self.rates, strict=True))
        return PerImageScores(
            accuracy=accuracy,
            miou=miou,
            miou_gt=miou_gt,
            images=len(self.rates),
            skipped=self.skipped,
            rule=self.rule,
        )
