"""Segmenting images by the tokens that `extract` stored: each head, seed and CRF setting without the backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.skipped import Skipped
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.data.geometry import Geometry, View
from unsupseg_cli.data.images import image_size, read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.inference.segment import Segmented
from unsupseg_cli.models.boxes import Box, mirrored
from unsupseg_cli.models.dense import DenseModel, Look
from unsupseg_cli.models.heads import PIXEL_ARRAYS, TOKEN_ARRAYS

_AT_ONCE = 16  # views whose tokens are read together


def segment_stored(
    segmenter: DenseModel,
    features: FeatureSet,
    items: Sequence[Item],
    geometry: Geometry,
    reporter: Reporter,
    *,
    flip: bool,
    skipped: Skipped,
    description: str = "segment",
) -> Iterator[Segmented]:
    """Segment the view of every image that features hold, in order; images without one go to ``skipped``.

    Args:
        segmenter: the model; its backbone is not asked.
        features: tokens of the images, and with ``flip`` of their mirror images.
        items: the images.
        geometry: what the views are of the images.
        reporter: is told about the progress.
        flip: average with the mirror image.
        skipped: gets the images that were unreadable when the features were made.
        description: of the progress.
    """
    rows = _rows(features, mirror=False)
    if features.store_dtype == "int8":
        reporter.info(
            f"the tokens of '{features.artifact.id}' are stored as int8, less exact than the backbone's"
        )
    looks = _Looks(segmenter, features, geometry)
    mirrors = _rows(features, mirror=True) if flip else {}

    def segment(part: Sequence[Item]) -> Iterator[Segmented]:
        seen = looks([rows[item.key] for item in part], part)
        mirror = looks([mirrors[item.key] for item in part], part) if flip else [None] * len(part)
        for item, look, mirrored_look in zip(part, seen, mirror, strict=True):
            (scores,) = segmenter.score_look(look, mirrored_look)
            yield Segmented(item, *image_size(item.image), features.view(rows[item.key]), scores, segmenter)

    def all_items() -> Iterator[Segmented | None]:
        there = [item for item in items if item.key in rows]
        for item in items:
            if item.key not in rows:
                skipped.add(item, "unreadable when its features were extracted")
                yield None
        for start in range(0, len(there), _AT_ONCE):
            yield from segment(there[start : start + _AT_ONCE])

    for result in reporter.track(all_items(), description, total=len(items)):
        if result is not None:
            yield result


def _rows(features: FeatureSet, *, mirror: bool) -> dict[str, int]:
    """Return the row of each image's view, or of its mirror image.

    Raises:
        UsageError: there are several views of an image, or no mirror images.
    """
    columns = features.views
    rows = [row for row, flip in enumerate(columns["flip"]) if flip == mirror]
    keys = [columns["key"][row] for row in rows]
    if len(set(keys)) < len(keys):
        raise UsageError(
            f"The features '{features.artifact.id}' have several views of an image; take those of whole images."
        )
    if mirror and not keys:
        raise UsageError(
            f"The features '{features.artifact.id}' hold no mirror images, which --flip averages with; extract them "
            "with --flip."
        )
    return dict(zip(keys, rows, strict=True))


class _Looks:
    """What a model reads of some views: stored tokens, and where it reads pixels these from the images."""

    def __init__(self, segmenter: DenseModel, features: FeatureSet, geometry: Geometry) -> None:
        self._segmenter, self._features, self._geometry = segmenter, features, geometry
        self._tokens = [name for name in segmenter.reads if name in TOKEN_ARRAYS]
        self._pixels = any(name in PIXEL_ARRAYS for name in segmenter.reads)

    def __call__(self, rows: Sequence[int], items: Sequence[Item]) -> list[Look]:
        """Return the look at each of some rows, which show some images."""
        arrays = {name: self._features.array(name, rows) for name in self._tokens}
        return [
            self._look(
                {name: values[place] for name, values in arrays.items()}, self._features.view(row), item
            )
            for place, (row, item) in enumerate(zip(rows, items, strict=True))
        ]

    def _look(self, tokens: dict[str, Tensor], view: View, item: Item) -> Look:
        device = self._segmenter.device
        arrays = {name: value[None].to(device) for name, value in tokens.items()}
        if "attention" in arrays:  # as a backbone gives it: heads first
            arrays["attention"] = arrays["attention"].movedim(-1, 1)
        if self._pixels:
            image = read_image(item.image, item.reading)
            shown = torch.tensor(self._geometry.render(image, view), device=device)[None]
            arrays |= self._segmenter.image_arrays(shown, _box(view, *image.shape[:2]))
        return Look(arrays, view.height, view.width)


def _box(view: View, height: int, width: int) -> Box:
    """Return the part of an image (height, width) that a view shows, in shares of its sides."""
    left, top, right, bottom = view.box
    box = (left / width, top / height, right / width, bottom / height)
    return mirrored(box) if view.flip else box
