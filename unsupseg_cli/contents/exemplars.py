"""The picture of what each class was made of: the regions nearest to its centre, and where in them it lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.masks import MaskTable
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.methods.interface import RegionSet
from unsupseg_cli.report.overlay import blend
from unsupseg_cli.report.palette import class_colors
from unsupseg_cli.report.sheet import Picture, grid
from unsupseg_cli.training.live import Images

CLASSES = "classes.png"
_SHOWN = 6  # exemplars of a class
_SIDE = 96  # of an exemplar in pixels


def draw_exemplars(
    folder: Path,
    exemplars: Sequence[Sequence[int]],
    regions: RegionSet,
    features: FeatureSet,
    open_images: Callable[[], Images],
    context: Context,
) -> None:
    """Write ``classes.png``: a row for each class, of the regions nearest to its centre, where it lies beside each.

    Args:
        folder: of pseudo-labels that are written already.
        exemplars: by class the rows of the regions, nearest first.
        regions: that the classes were made of.
        features: whose views the pseudo-labels are of.
        open_images: gives what a view shows.
        context: is told where the images are gone.
    """
    if not any(exemplars):
        return
    try:
        images = open_images()
    except UnsupsegError as error:
        context.reporter.info(f"no picture of the classes: {error}")
        return
    masks, colors = MaskTable(folder), class_colors(max(256, len(exemplars)))
    rows: list[list[Picture]] = []
    for number, members in enumerate(exemplars):
        row: list[Picture] = []
        for region in members[:_SHOWN]:
            view = int(regions.view[region])
            (image,) = images([view])
            of_class = masks.rows(view).group == number
            there = np.append(of_class, False)[masks.label_map(view)]
            labels = _enlarged(np.where(there, number, -1), image.shape[:2])
            corners = features.view(view).to_view(regions.box[region].reshape(2, 2))
            row += [_part(picture, corners) for picture in (image, blend(image, labels, colors))]
        rows.append(row)
    names = [f"class {number}" for number in range(len(exemplars))]
    grid(rows, ["nearest", "class"] * _SHOWN, cell=_SIDE, labels=names).save(folder / CLASSES)


def _enlarged(labels: NDArray[np.int64], size: tuple[int, ...]) -> NDArray[np.int64]:
    """Return a label map at a multiple of its size."""
    scale = (size[0] // labels.shape[0], size[1] // labels.shape[1])
    return np.kron(labels, np.ones(scale, labels.dtype))


def _part(image: NDArray[np.uint8], corners: NDArray[np.float64]) -> Image.Image:
    """Return the part of an image between two corners (x, y), scaled to a square."""
    low, high = corners.min(0).clip(0), corners.max(0)
    right, bottom = min(high[0], image.shape[1]), min(high[1], image.shape[0])
    box = (float(low[0]), float(low[1]), float(right), float(bottom))
    return Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box=box)
