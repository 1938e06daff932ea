"""Segmenting images one after the other: what `predict` and `eval` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.contents.skipped import Skipped
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.data.geometry import Geometry, View
from unsupseg_cli.data.images import image_size
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.loader import Failed, load_views
from unsupseg_cli.models.boxes import WHOLE, Box
from unsupseg_cli.models.dense import DenseModel, ScoreMap
from unsupseg_cli.models.linear_model import LinearModel
from unsupseg_cli.models.memory import with_backoff

DEFAULT_TILE = 1024
_GPU_BATCH = 16
_WINDOW = 4  # batches of images that wait for others of their size


@dataclass(frozen=True)
class Segmented:
    """One segmented image: `labels` and `log_probs` bring the scores of its cells to any size."""

    item: Item
    height: int
    width: int
    view: View
    scores: ScoreMap
    segmenter: DenseModel

    def labels(self, height: int, width: int) -> NDArray[np.int16]:
        """Return the class of every pixel, (height, width)."""
        return self.segmenter.labels(self.scores, height, width)

    def with_head(self, segmenter: LinearModel) -> Segmented:
        """Return the same image scored by another linear model with the same backbone and feature heads."""
        if self.scores.codes is None:
            raise UsageError(
                "An image this large is tiled, which a linear probe does not support; set a --size."
            )
        return replace(self, scores=segmenter.score_codes(self.scores.codes)[0], segmenter=segmenter)

    def log_probs(self, height: int, width: int) -> Tensor:
        """Return log-probabilities, (K, height, width)."""
        return self.segmenter.log_probs(self.scores, height, width)


def whole_images(trained: Geometry, size: int | None) -> Geometry:
    """Return the geometry of whole images, at the size a model was trained with unless one is given (0: their own)."""
    own = trained.size if size is None else (size or None)
    return Geometry(kind="native", size=own, filter=trained.filter)


def segment_items(
    segmenter: DenseModel,
    items: Sequence[Item],
    geometry: Geometry,
    reporter: Reporter,
    *,
    flip: bool,
    workers: int,
    batch: int | None = None,
    tile: int | None = None,
    overlap: float = 0.25,
    skipped: Skipped,
    description: str = "segment",
) -> Iterator[Segmented]:
    """Segment the one view of every image, in order; unreadable ones go to ``skipped``.

    Images of one size go through the network together, ``batch`` of them at most; those that wait for others of their
    size are few. Images are tiled when asked, or when they have more pixels than the model takes at once.
    """
    segmented = _segment_all(segmenter, items, geometry, flip, workers, batch, tile, overlap, skipped)
    for result in reporter.track(segmented, description, total=len(items)):
        if result is not None:
            yield result


def _segment_all(
    segmenter: DenseModel,
    items: Sequence[Item],
    geometry: Geometry,
    flip: bool,
    workers: int,
    batch: int | None,
    tile: int | None,
    overlap: float,
    skipped: Skipped,
) -> Iterator[Segmented | None]:
    """Yield each image when it was segmented, None for one that is skipped."""
    most = batch or default_batch(segmenter)
    window = most * (1 if most == 1 else _WINDOW)
    loaded = load_views(items, geometry, segmenter.multiple, workers=workers)
    waiting: list[_WaitingView] = []
    for item, result in zip(items, loaded, strict=True):
        if isinstance(result, Failed):
            skipped.add(item, result.message)
            yield None
            continue
        waiting.append(_WaitingView(item, *result.views[0]))
        if len(waiting) == window:
            yield from _segment(segmenter, waiting, most, flip, tile, overlap)
            waiting = []
    yield from _segment(segmenter, waiting, most, flip, tile, overlap)


def default_batch(segmenter: DenseModel) -> int:
    """Return the most images at a time where none is asked for: on a CPU more than one brings nothing."""
    return 1 if segmenter.device.type == "cpu" else _GPU_BATCH


@dataclass(frozen=True)
class _WaitingView:
    """The view of an image that waits for others of its size."""

    item: Item
    view: View
    image: NDArray[np.uint8]

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the image itself."""
        return image_size(self.item.image, self.item.reading)

    @property
    def box(self) -> Box:
        """The part of the image that the view shows, in shares of its sides."""
        left, top, right, bottom = self.view.box
        height, width = self.size
        return left / width, top / height, right / width, bottom / height

    def segmented(self, scores: ScoreMap, segmenter: DenseModel) -> Segmented:
        """Return the result."""
        return Segmented(self.item, *self.size, self.view, scores, segmenter)


def _segment(
    segmenter: DenseModel,
    views: Sequence[_WaitingView],
    most: int,
    flip: bool,
    tile: int | None,
    overlap: float,
) -> list[Segmented]:
    """Segment some views, those of one size together, and return them in the given order."""
    results: dict[int, Segmented] = {}
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, view in enumerate(views):
        height, width = view.image.shape[:2]
        if tile is not None or height * width > segmenter.most_pixels:
            scores = segmenter.score_tiled(view.image, tile or DEFAULT_TILE, overlap, flip, view.box)
            results[index] = view.segmented(scores, segmenter)
        else:
            box = view.box if segmenter.placed else WHOLE  # what a view shows of its image
            groups.setdefault((height, width, box), []).append(index)
    for members in groups.values():

        def run(part: Sequence[int]) -> list[Segmented]:
            images = np.stack([views[index].image for index in part])
            maps = segmenter.score(images, flip, views[part[0]].box)
            return [
                views[index].segmented(scores, segmenter) for index, scores in zip(part, maps, strict=True)
            ]

        results |= dict(zip(members, with_backoff(run, members, most), strict=True))
    return [results[index] for index in range(len(views))]
