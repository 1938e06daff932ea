"""Which boxes of which images are embedded: the layouts of `extract --regions`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.masks import MaskReader
from unsupseg_cli.contents.skipped import Skipped
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.core.options import RegionConfig, ResizeFilter
from unsupseg_cli.data.datasets import Dataset
from unsupseg_cli.data.geometry import Geometry, View, render_part
from unsupseg_cli.data.views import (
    FOREGROUND,
    Regions,
    anchors,
    covered_anchors,
    pyramid,
    table_of_regions,
    table_of_views,
    to_pixels,
)
from unsupseg_cli.inference.extraction import Layout, readable_items

Find = Callable[[str, int, int], Regions]
"""Returns the regions of an image by its key, height and width."""


def lay_out_regions(
    dataset: Dataset,
    config: RegionConfig,
    inputs: Mapping[str, Artifact],
    context: Context,
    side: int | None,
    resize: ResizeFilter,
    patch: int,
    skipped: Skipped,
    whole: Geometry | None = None,
) -> Layout:
    """Lay out the regions of every readable image.

    Args:
        dataset: the images.
        config: which regions.
        inputs: the artifacts that they are found in, by role.
        context: the workspace that these lie in.
        side: height and width of a region as it is embedded, in pixels; None keeps a box's own size.
        resize: filter of the resize.
        patch: pixels of a token's side.
        skipped: gets the images that cannot be read.
        whole: how an image becomes the view that its regions are embedded from; None embeds each region alone.

    Raises:
        UnsupsegError: a box is empty or outside its image, no region is kept, or an image may not be skipped.
        UsageError: features have no attention, or views that are not whole images.
    """
    items, sizes = readable_items(dataset.items, skipped)
    find = _finder(config, inputs, context)
    regions = [find(item.key, *size) for item, size in zip(items, sizes, strict=True)]
    keys = [item.key for item in items]
    table = table_of_regions(keys, sizes, regions, side, patch)
    if not len(table):
        raise UnsupsegError(f"No image of '{dataset.root}' has a region: {_REMEDIES[str(config.regions)]}.")
    empty = [key for key, of_image in zip(keys, regions, strict=True) if not len(of_image.boxes)]
    layout = Layout(items, table, partial(_render, resize=resize), skipped, regions=True, empty=empty)
    if whole is None:
        return layout
    frames = [(item, view) for item, size in enumerate(sizes) for view in whole.views(*size, patch)]
    return replace(layout, frames=table_of_views(frames), render=whole.render)


_REMEDIES = {
    "anchors": "lower --foreground-share or --background-share",
    "pyramid": "there are no images",
    "masks": "the masks are empty, make others",
}


def _render(image: NDArray[np.uint8], view: View, resize: ResizeFilter) -> NDArray[np.uint8]:
    return render_part(image, view.box, view, resize)


def _finder(config: RegionConfig, inputs: Mapping[str, Artifact], context: Context) -> Find:
    if config.regions == "pyramid":
        return lambda key, height, width: pyramid(height, width, config.levels, config.overlap)
    if config.regions == "masks":
        masks = inputs.get("pseudolabels") or inputs["masks"]
        return _MaskRegions(MaskReader(masks, context))
    if config.foreground_share == 0:
        return partial(_all_anchors, scales=config.scales)
    return _CoveredAnchors(FeatureSet(inputs["features"]), config)


def _all_anchors(key: str, height: int, width: int, scales: Sequence[float]) -> Regions:
    """Return every anchor of an image as foreground."""
    boxes = to_pixels(anchors(height, width, scales), height, width)
    return Regions(boxes, np.full(len(boxes), -1), np.full(len(boxes), FOREGROUND))


class _CoveredAnchors:
    """The anchors of an image that its CLS attention keeps."""

    def __init__(self, features: FeatureSet, config: RegionConfig) -> None:
        features.require("attention")
        self._features, self._config = features, config
        self._row = {key: row for row, key in enumerate(features.views["key"])}
        if len(self._row) < len(features):
            raise UsageError(
                f"Anchors need features whose views are whole images, and '{features.artifact.id}' has "
                f"{len(features)} views of {len(self._row)} images: extract them with --geometry native or squash."
            )

    def __call__(self, key: str, height: int, width: int) -> Regions:
        row = self._row[key]
        view = self._features.view(row)
        if view.box != (0.0, 0.0, float(width), float(height)):
            raise UsageError(
                f"Anchors need features whose views are whole images; the view of '{key}' in "
                f"'{self._features.artifact.id}' is a part of it: extract them with --geometry native or squash."
            )
        attention = self._features.array("attention", [row])[0].numpy()
        boxes = anchors(view.height, view.width, self._config.scales)
        cells = boxes * np.tile([attention.shape[1] / view.width, attention.shape[0] / view.height], 2)
        kept, tags = covered_anchors(
            attention, cells, self._config.foreground_share, self._config.background_share
        )
        in_pixels = to_pixels(view.boxes_to_original(boxes[kept]), height, width)
        return Regions(in_pixels, np.full(len(in_pixels), row), tags[kept])


class _MaskRegions:
    """The boxes of the masks of an image."""

    def __init__(self, masks: MaskReader) -> None:
        self._masks = masks
        self._views = indices_by(masks.views["key"])

    def __call__(self, key: str, height: int, width: int) -> Regions:
        boxes, parents, tags = [np.empty((0, 4))], [], []
        for view in self._views.get(key, ()):
            of_masks = self._masks.boxes(view)
            there = np.flatnonzero(of_masks[:, 2] > of_masks[:, 0])
            boxes.append(of_masks[there])
            parents += [view] * len(there)
            tags += there.tolist()
        in_pixels = to_pixels(np.concatenate(boxes), height, width)
        return Regions(in_pixels, np.array(parents, np.int64), np.array(tags, np.int64))


def most_anchors(grids: NDArray[np.int64], scales: Sequence[float]) -> int:
    """Return how many anchors there are at most on frames of these grids, (N, 2)."""
    counts = {(h, w): len(anchors(h, w, scales)) for h, w in np.unique(grids, axis=0).tolist()}
    return sum(counts[h, w] for h, w in grids.tolist())
