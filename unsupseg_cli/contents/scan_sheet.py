"""The picture of a scan over the number of classes: the criterion, and a few images in some of the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.clustering.class_number import SHARE, VARIANCE, Scan
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.views import ViewImages
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.report.overlay import blend
from unsupseg_cli.report.palette import class_colors
from unsupseg_cli.report.plots import as_image, criterion_figure
from unsupseg_cli.report.sheet import Picture, grid

SHEET = "sheet.png"
_CELL = 200  # width of a picture in pixels
_MARGIN = 20


def draw_scan(
    folder: Path,
    scan: Scan,
    features: FeatureSet,
    count: int,
    context: Context,
    objects: list[Tensor] | None = None,
) -> None:
    """Write ``sheet.png``: the silhouette over K, and below it some images, evenly chosen, in a few numbers of classes.

    Args:
        folder: of the scan.
        scan: what was found.
        features: that were clustered.
        count: images; 0 draws the criterion alone.
        context: is told where the images are gone.
        objects: cells of each view that were clustered, (h, w) bool, where the others are a background, one class more.
    """
    beside = 0 if objects is None else 1
    figure = criterion_figure(
        [number + beside for number in scan.classes],
        scan.silhouette,
        best=scan.best + beside,
        level=SHARE * max(scan.silhouette),
        label="mean silhouette",
        note=f"{SHARE:.0%} of the highest",
        floor=scan.components + beside,
        floor_note=f"{scan.components} components hold {VARIANCE:.0%} of the variance"
        + (", and a background" if beside else ""),
    )
    pictures = [as_image(figure)]
    try:
        pictures += [_samples(scan, features, count, context, objects)] if count else []
    except UnsupsegError as error:
        context.reporter.info(f"no images on the sheet: {error}")
    width = max(picture.width for picture in pictures)
    page = Image.new(
        "RGB", (width, sum(picture.height for picture in pictures) + _MARGIN * len(pictures)), "white"
    )
    top = 0
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height + _MARGIN
    page.save(folder / SHEET)


def _samples(
    scan: Scan, features: FeatureSet, count: int, context: Context, objects: list[Tensor] | None
) -> Image.Image:
    """Return a row of images for each of a few numbers of classes; a background stays as it is."""
    views = np.linspace(0, len(features) - 1, min(count, len(features))).round().astype(int).tolist()
    images = ViewImages(features, context)(views)
    tokens = [F.normalize(view, dim=-1) for view in features.tokens(views)]
    colors = class_colors(max(256, scan.classes[-1]))
    rows: list[list[Picture]] = [list(images)]
    names = ["images"]
    for k in _shown(scan):
        centroids = scan.centroids[scan.classes.index(k)]
        cells = [(view @ centroids.T).argmax(-1) for view in tokens]
        if objects is not None:
            cells = [classes.where(objects[view], VOID) for view, classes in zip(views, cells, strict=True)]
        maps = [_enlarged(classes, image) for classes, image in zip(cells, images, strict=True)]
        rows.append([blend(image, labels, colors) for image, labels in zip(images, maps, strict=True)])
        background = "" if objects is None else " and a background"
        names.append(f"{k} classes{background}{'   (auto)' if k == scan.best else ''}")
    return grid(rows, labels=names, cell=_CELL)


def _shown(scan: Scan) -> list[int]:
    """Return the numbers that are shown: the least, the largest, the best and what lies between."""
    best, last = scan.classes.index(scan.best), len(scan.classes) - 1
    return [scan.classes[place] for place in sorted({0, best // 2, best, (best + last) // 2, last})]


def _enlarged(cells: Tensor, image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the classes of the tokens (h, w) at the size of their image (H, W, 3)."""
    labels = cells.numpy()
    scale = (image.shape[0] // labels.shape[0], image.shape[1] // labels.shape[1])
    return np.kron(labels, np.ones(scale, labels.dtype))
