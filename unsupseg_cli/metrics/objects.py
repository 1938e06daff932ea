"""Masks against true objects: average precision by COCO's rules, and which class the masks of a cluster stand for."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment

from unsupseg_cli.core.labels import VOID

MOST = 100
"""Masks of an image that count, those of the highest scores (COCO's rule)."""


@dataclass(frozen=True)
class Object:
    """A mask (H, W) that is not empty; ``group`` is its class or cluster, -1 without one.

    ``score`` is that of a mask that was found. A true ``crowd`` is a group of objects: what lies in it is no error.
    """

    mask: NDArray[np.bool_]
    group: int = VOID
    score: float = 1.0
    crowd: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


@dataclass(frozen=True)
class Precision:
    """Average precision at IoU 0.5 and over 0.5 to 0.95, in [0, 1]; ``classes`` has that at 0.5 of each class."""

    ap50: float
    ap: float
    classes: tuple[float | None, ...]


class ObjectScores:
    """Accumulates the objects of images, found ones and true ones.

    Args:
        clusters: of the masks; a mask without one counts where classes do not matter.
        classes: of the truth; an object without one counts where classes do not matter.
    """

    def __init__(self, clusters: int, classes: int) -> None:
        self.clusters, self.classes = clusters, classes
        self.beyond = 0
        self._sizes: list[tuple[int, int]] = []
        self.votes: NDArray[np.int64] = np.zeros((clusters, classes), np.int64)
        self.members: NDArray[np.int64] = np.zeros(clusters, np.int64)
        self._true: list[dict[str, Any]] = []
        self._masks: list[dict[str, Any]] = []

    @property
    def images(self) -> int:
        """Images so far."""
        return len(self._sizes)

    @property
    def objects(self) -> int:
        """True objects so far, without crowds."""
        return sum(not entry["iscrowd"] for entry in self._true)

    @property
    def unnamed(self) -> int:
        """True objects without a class so far, without crowds."""
        return sum(entry["category_id"] == VOID and not entry["iscrowd"] for entry in self._true)

    @property
    def masks(self) -> int:
        """Masks so far."""
        return len(self._masks)

    def update(self, masks: Sequence[Object], truth: Sequence[Object], size: tuple[int, int]) -> None:
        """Take the objects of an image of a ``size``, height and width.

        Each mask with a cluster votes for the class of the true object whose box has the highest IoU with its own
        (MaskDistill, published code: cluster.py); a mask whose box meets none, or one without a class, does not vote.
        """
        self._sizes.append(size)
        self.beyond += max(0, len(masks) - MOST)
        for mask in masks:
            if mask.group != VOID:
                self.members[mask.group] += 1
        self._true += [self._entry(target, len(self._true) + number) for number, target in enumerate(truth)]
        self._masks += [self._entry(mask, len(self._masks) + number) for number, mask in enumerate(masks)]
        single = [target for target in truth if not target.crowd]
        if not masks or not single:
            return
        boxes, true_boxes = ([list(map(float, shape.box)) for shape in shapes] for shapes in (masks, single))
        iou = np.asarray(coco.iou(boxes, true_boxes, [0] * len(single)))
        for mask, overlaps in zip(masks, iou, strict=True):
            group = single[int(overlaps.argmax())].group
            if VOID not in (mask.group, group) and overlaps.max() > 0:
                self.votes[mask.group, group] += 1

    def naming(self) -> NDArray[np.int64]:
        """Return the class of each cluster, (clusters,): one-to-one, the most votes; -1 where no mask votes for it."""
        rows, columns = linear_sum_assignment(self.votes, maximize=True)
        named = np.full(self.clusters, VOID, np.int64)
        named[rows] = np.where(self.votes[rows, columns] > 0, columns, VOID)
        return named

    def precision(self, naming: NDArray[np.int64] | None = None) -> Precision | None:
        """Return the average precision, by class where a ``naming`` (clusters,) gives the class of each cluster.

        Masks of a cluster without a class (-1) are left out then, and classes that do not occur in truth. None where
        there is no object.
        """
        if not self.objects:
            return None
        named = None if naming is None else np.append(naming, VOID)  # the last entry is that of no cluster
        masks = [
            entry | {"category_id": 0 if named is None else int(named[entry["category_id"]])}
            for entry in self._masks
        ]
        categories = range(self.classes) if named is not None else range(1)
        truth = [entry | ({} if named is not None else {"category_id": 0}) for entry in self._true]
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints what it does
            judge = COCOeval(self._coco(truth, categories), self._coco(masks, categories), "segm")
            judge.params.maxDets = [MOST]
            judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
            judge.evaluate()
            judge.accumulate()
        precision = judge.eval["precision"][
            ..., 0, 0
        ]  # (IoUs, recalls, classes), -1 for a class without an object
        present = (precision >= 0).all((0, 1))
        single = [float(precision[0, :, k].mean()) if present[k] else None for k in categories]
        return Precision(
            float(precision[0][:, present].mean()),
            float(precision[:, :, present].mean()),
            tuple(single) if named is not None else (),
        )

    def _entry(self, shape: Object, number: int) -> dict[str, Any]:
        segmentation = coco.encode(np.asfortranarray(shape.mask, np.uint8))
        return {
            "id": number + 1,  # 0 means none to the library
            "image_id": self.images,
            "category_id": shape.group,
            "segmentation": segmentation,
            "area": int(shape.mask.sum()),
            "iscrowd": int(shape.crowd),
            "score": shape.score,
        }

    def _coco(self, entries: list[dict[str, Any]], categories: range) -> Any:
        judged = COCO()
        judged.dataset = {
            "images": [{"id": n + 1, "height": h, "width": w} for n, (h, w) in enumerate(self._sizes)],
            "categories": [{"id": number} for number in categories],
            "annotations": [entry for entry in entries if entry["category_id"] in categories],
        }
        judged.createIndex()
        return judged
