"""Masks, or the regions that a model predicts -> those that the model is sure of, without overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.crf import refine_batch
from unsupseg_cli.data.masks import resized
from unsupseg_cli.methods.interface import Inputs, Labeller, Masks
from unsupseg_cli.methods.maskdistill.background import warn_of_background
from unsupseg_cli.methods.maskdistill.config import FilterOptions
from unsupseg_cli.methods.maskdistill.detector import MaskDetector


@dataclass(frozen=True)
class Candidates:
    """What may become masks of a view: ``masks`` (M, H, W), with a ``score`` and a ``group`` (class) each."""

    masks: NDArray[np.bool_]
    score: NDArray[np.float64]
    group: NDArray[np.int64]


def chosen(candidates: Candidates, least: float) -> tuple[NDArray[np.int64], int]:
    """Return the masks that stay, best first, and how many were sure enough but overlap a better one.

    The best mask always stays; of the others those of a score of at least ``least`` that share no pixel with one that
    stays (MaskDistill, published code, gen_segmentation.py, where the test of overlap misses).
    """
    kept: list[int] = []
    taken = np.zeros(candidates.masks.shape[1:], np.bool_)
    overlapping = 0
    for index in np.argsort(-candidates.score, kind="stable"):
        if kept and candidates.score[index] < least:
            break
        if (taken & candidates.masks[index]).any():
            overlapping += 1
            continue
        taken |= candidates.masks[index]
        kept.append(int(index))
    return np.array(kept, np.int64), overlapping


def agreed(
    masks: NDArray[np.bool_], group: NDArray[np.int64], probs: NDArray[np.float32], first: int
) -> Candidates:
    """Return masks with the share of their pixels that the model gives their class, or the likeliest for those without.

    Probabilities would not do: training on the hardest pixels leaves a model unsure of what it has right.

    Args:
        masks: (M, H, W), none of them empty.
        group: class of each, -1 without one.
        probs: (K, H, W).
        first: the lowest class that a mask without one may get.
    """
    means = np.array([probs[:, mask].mean(1) for mask in masks]).reshape(len(masks), len(probs))
    group = np.where(group == VOID, means[:, first:].argmax(1) + first, group)
    highest = probs.argmax(0)
    score = [(highest[mask] == number).mean() for mask, number in zip(masks, group, strict=True)]
    return Candidates(masks, np.array(score, np.float64), group)


def predicted(probs: NDArray[np.float32], first: int) -> Candidates:
    """Return the 4-connected regions of each class from ``first`` on, with the mean of its probability (K, H, W)."""
    classes = probs.argmax(0)
    masks, groups, score = [], [], []
    for number in range(first, len(probs)):
        regions, count = ndimage.label(classes == number)
        masks += [regions == region for region in range(1, count + 1)]
        score += ndimage.mean(probs[number], regions, range(1, count + 1)).tolist()
        groups += [number] * count
    whole = np.array(masks, np.bool_).reshape(-1, *classes.shape)
    return Candidates(whole, np.array(score, np.float64), np.array(groups, np.int64))


class FilterLabeller(Labeller):
    """Scores candidates by a model, and keeps the sure ones that do not overlap."""

    options: FilterOptions

    def __init__(self, options: FilterOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        self._counts = self._zero()

    @staticmethod
    def _zero() -> dict[str, int]:
        return {"candidates": 0, "kept": 0, "below_score": 0, "overlap_skipped": 0, "kept_below_score": 0}

    def fit(self) -> dict[str, Any]:
        """Train the detector, where one is asked for; return figures of its training."""
        if self.options.background and self.options.source != "predictions":
            assert self.inputs.masks is not None
            warn_of_background(self.inputs.masks, self.inputs.reporter, "left out")
        if self.options.source != "detector":
            return {}
        self._detector = MaskDetector(self.options, self.inputs)
        return self._detector.fit()

    def learned(self) -> dict[str, Tensor]:
        """Return the weights of the detector, where there is one."""
        return self._detector.learned() if self.options.source == "detector" else {}

    def restore(self, learned: Mapping[str, Tensor]) -> None:
        """Take the weights of the detector, where there is one."""
        if self.options.source == "detector":
            self._detector = MaskDetector(self.options, self.inputs)
            self._detector.restore(learned)

    def label(self, views: Sequence[int]) -> list[Masks]:
        """Return the masks that stay, at the size of the image."""
        images = self.inputs.images(views)
        if self.options.source == "detector":
            detected = [Candidates(*self._detector(image)) for image in images]
            return [self._kept(own, image.shape[:2]) for own, image in zip(detected, images, strict=True)]
        log_probs = self.inputs.segment(views, images)
        probs = refine_batch(log_probs, images) if self.options.crf else [maps.exp() for maps in log_probs]
        candidates = [
            self._candidates(view, maps.cpu().numpy()) for view, maps in zip(views, probs, strict=True)
        ]
        return [self._kept(own, image.shape[:2]) for own, image in zip(candidates, images, strict=True)]

    def _kept(self, candidates: Candidates, size: tuple[int, ...]) -> Masks:
        kept, overlapping = chosen(candidates, self.options.score)
        labels = np.full(size, VOID, np.int16)
        for number, index in enumerate(kept):
            labels[candidates.masks[index]] = number
        score = candidates.score[kept]
        self._count(len(candidates.score), len(kept), overlapping, int((score < self.options.score).sum()))
        area = candidates.masks[kept].sum((1, 2)).astype(np.int64)
        return Masks(labels, area, score.astype(np.float32), candidates.group[kept])

    def _candidates(self, view: int, probs: NDArray[np.float32]) -> Candidates:
        first = int(self.options.background)
        if len(probs) <= first:
            raise UsageError("The model has only one class, the background; train it with more --classes.")
        if self.options.source == "predictions":
            return predicted(probs, first)
        assert self.inputs.masks is not None
        assert self.inputs.masks.masks is not None
        masks, group = resized(self.inputs.masks.masks(view), probs.shape[1:]), self.inputs.masks.groups[view]
        if int(group.max(initial=VOID)) >= len(probs):
            raise UsageError(
                f"A mask is of class {int(group.max())}, and the model has {len(probs)} classes; give the model "
                "that was trained on these masks."
            )
        usable = masks.any((1, 2)) & ((group == VOID) | (group >= first))  # background is no object
        return agreed(masks[usable], group[usable], probs, first)

    def _count(self, candidates: int, kept: int, overlapping: int, unsure: int) -> None:
        for name, value in (
            ("candidates", candidates),
            ("kept", kept),
            ("below_score", candidates - kept - overlapping),
            ("overlap_skipped", overlapping),
            ("kept_below_score", unsure),
        ):
            self._counts[name] += value

    def figures(self) -> dict[str, Any]:
        """Return how many candidates there were, and what became of them."""
        counts, self._counts = self._counts, self._zero()
        return counts
