"""Segmenting images one after the other: what `predict` and `eval` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.data.geometry import Geometry, View
from unsupseg_cli.data.images import image_size
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.loader import Failed, load_views
from unsupseg_cli.models.segmenter import ScoreMap, Segmenter

# More tokens than this in one forward pass cost quadratic memory in attention: about 1400 px at patch 16.
TOKEN_BUDGET = 8192
DEFAULT_TILE = 1024


@dataclass(frozen=True)
class Segmented:
    """One segmented image.

    ``scores`` are on the token grid; `labels` and `log_probs` bring them to any size. ``codes`` (1, h, w, D) are
    what the scores were made from, None where the image was tiled.
    """

    item: Item
    height: int
    width: int
    view: View
    image: NDArray[np.uint8]
    scores: ScoreMap
    segmenter: Segmenter
    codes: Tensor | None

    def labels(self, height: int, width: int) -> NDArray[np.int16]:
        """Return the class of every pixel, (height, width)."""
        return self.segmenter.labels(self.scores, height, width)

    def with_head(self, segmenter: Segmenter) -> Segmented:
        """Return the same image scored by another segmenter with the same backbone and feature heads."""
        if self.codes is None:
            raise UsageError(
                "An image this large is tiled, which a linear probe does not support; set a --size."
            )
        return replace(self, scores=segmenter.score_codes(self.codes)[0], segmenter=segmenter)

    def log_probs(self, height: int, width: int) -> Tensor:
        """Return log-probabilities, (K, height, width)."""
        return self.segmenter.log_probs(self.scores, height, width)


def segment_items(
    segmenter: Segmenter,
    items: Sequence[Item],
    geometry: Geometry,
    reporter: Reporter,
    *,
    flip: bool,
    workers: int,
    tile: int | None = None,
    overlap: float = 0.25,
    strict: bool = False,
    skipped: dict[str, str] | None = None,
    description: str = "segment",
) -> Iterator[Segmented]:
    """Segment the one view of every image, in order; unreadable ones go to ``skipped``.

    Images are tiled when asked, or when one forward pass would need more than `TOKEN_BUDGET` tokens.
    """
    patch = segmenter.backbone.patch_size
    loaded = load_views(items, geometry, patch, workers=workers)
    for item, result in zip(items, reporter.track(loaded, description, total=len(items)), strict=True):
        if isinstance(result, Failed):
            if strict:
                raise UnsupsegError(f"{result.message} (--strict stops at the first unreadable image).")
            if skipped is not None:
                skipped[item.key] = result.message
            continue
        view, image = result.views[0]
        height, width = image_size(item.image)
        left, top, right, bottom = view.box
        box = (left / width, top / height, right / width, bottom / height)
        tokens = (image.shape[0] // patch) * (image.shape[1] // patch)
        if tile is not None or tokens > TOKEN_BUDGET:
            codes = None
            scores = segmenter.score_tiled(image, tile or DEFAULT_TILE, overlap, flip, box)
        else:
            codes = segmenter.codes(image[None], flip, box)
            scores = segmenter.score_codes(codes)[0]
        yield Segmented(item, height, width, view, image, scores, segmenter, codes)
