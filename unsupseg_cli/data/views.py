"""View tables: which rectangle of which image each row shows. Whole images, crops and regions are views alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.data.geometry import View, snap

Real = TypeVar("Real", np.float32, np.float64)

ANCHOR_CELLS = 80
"""Cells of the grid of anchors along a frame's shorter side. Source: TransFGU, public code (640 pixels at patch 8)."""


@dataclass(frozen=True)
class ViewTable:
    """One row for each view, the views of an image one after the other.

    Attributes:
        item: Number of the image, (N,), not descending.
        crop: Number of the view within its image, (N,).
        box: Left, top, right, bottom in pixels of the image, (N, 4).
        height: Rows of the view in pixels, (N,).
        width: Columns, (N,).
        flip: Whether the view is mirrored, (N,).
        parent: Row of another table that a region was found in, (N,); -1 where there is none.
        tag: What the maker of a region says of it, (N,): see `covered_anchors` and `pyramid`; the id of a mask.
    """

    item: NDArray[np.int64]
    crop: NDArray[np.int64]
    box: NDArray[np.float64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    flip: NDArray[np.bool_]
    parent: NDArray[np.int64]
    tag: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.item)

    def __getitem__(self, row: int) -> View:
        left, top, right, bottom = self.box[row].tolist()
        return View(
            crop=int(self.crop[row]),
            box=(left, top, right, bottom),
            height=int(self.height[row]),
            width=int(self.width[row]),
            flip=bool(self.flip[row]),
        )

    def __iter__(self) -> Iterator[View]:
        return (self[row] for row in range(len(self)))

    def grids(self, patch: int) -> NDArray[np.int64]:
        """Return the rows and columns of patches of each view, (N, 2)."""
        return np.stack([self.height, self.width], axis=1) // patch

    def take(self, rows: NDArray[np.integer[Any] | np.bool_]) -> ViewTable:
        """Return the table of some rows."""
        return ViewTable(**{name: column[rows] for name, column in vars(self).items()})

    def runs(self, start: int, stop: int, most_pixels: int) -> list[range]:
        """Cut the rows [start, stop) where the image changes, and into runs of at most ``most_pixels`` (one view)."""
        pixels = self.height[start:stop] * self.width[start:stop]
        cuts, held = [start], 0
        for row in range(start, stop):
            held += int(pixels[row - start])
            if row > cuts[-1] and (held > most_pixels or self.item[row] != self.item[row - 1]):
                cuts.append(row)
                held = int(pixels[row - start])
        return [range(first, last) for first, last in pairwise([*cuts, stop])]


def table_of_views(views: Sequence[tuple[int, View]]) -> ViewTable:
    """Return the table of views (number of the image, view) that have no parent."""
    count = len(views)
    return ViewTable(
        item=np.array([item for item, _ in views], np.int64),
        crop=np.array([view.crop for _, view in views], np.int64),
        box=np.array([view.box for _, view in views], np.float64).reshape(count, 4),
        height=np.array([view.height for _, view in views], np.int64),
        width=np.array([view.width for _, view in views], np.int64),
        flip=np.array([view.flip for _, view in views], bool),
        parent=np.full(count, -1),
        tag=np.zeros(count, np.int64),
    )


@dataclass(frozen=True)
class Regions:
    """Boxes of one image, before they have a size as views.

    ``boxes`` (M, 4) are left, top, right, bottom in whole pixels of the image; ``parent`` and ``tag`` (M,) as in a
    `ViewTable`.
    """

    boxes: NDArray[np.int64]
    parent: NDArray[np.int64]
    tag: NDArray[np.int64]


def table_of_regions(
    keys: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    regions: Sequence[Regions],
    side: int | None,
    patch: int,
) -> ViewTable:
    """Return the table of the regions of some images.

    Args:
        keys: names of the images, for messages.
        sizes: height and width of each image.
        regions: of each image; may hold none.
        side: height and width of every view in pixels, snapped to whole patches; None keeps a box's own size.
        patch: pixels of a token's side.

    Raises:
        UnsupsegError: a box is empty or reaches over the border of its image; the message says which.
    """
    for key, size, of_image in zip(keys, sizes, regions, strict=True):
        _check_boxes(key, *size, of_image.boxes)
    counts = [len(of_image.boxes) for of_image in regions]
    boxes = _joined([of_image.boxes for of_image in regions]).reshape(-1, 4)
    if side is None:
        sides = [snap(length, patch) for length in (boxes[:, 2:] - boxes[:, :2]).ravel().tolist()]
        width, height = np.array(sides, np.int64).reshape(-1, 2).T
    else:
        width = height = np.full(len(boxes), snap(side, patch))
    return ViewTable(
        item=np.repeat(np.arange(len(regions)), counts),
        crop=_joined([np.arange(count) for count in counts]),
        box=boxes.astype(np.float64),
        height=height,
        width=width,
        flip=np.zeros(len(boxes), bool),
        parent=_joined([of_image.parent for of_image in regions]),
        tag=_joined([of_image.tag for of_image in regions]),
    )


def _joined(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *(part.ravel() for part in parts)])


def _check_boxes(key: str, height: int, width: int, boxes: NDArray[np.int64]) -> None:
    left, top, right, bottom = boxes.T
    empty = (right <= left) | (bottom <= top)
    outside = (left < 0) | (top < 0) | (right > width) | (bottom > height)
    for wrong, what in ((empty, "is empty"), (outside, f"reaches over its {width} x {height} pixels")):
        if wrong.any():
            index = int(np.flatnonzero(wrong)[0])
            raise UnsupsegError(
                f"Box {index} of '{key}', (left, top, right, bottom) = {tuple(boxes[index].tolist())}, {what}"
                f" ({int(wrong.sum())} of its {len(boxes)} boxes)."
            )


# Where regions come from ------------------------------------------------------------------------------------


def anchors(height: float, width: float, scales: Sequence[float]) -> NDArray[np.float64]:
    """Return square boxes (M, 4) over a frame, as left, top, right, bottom: each scale over the whole frame.

    The frame has 80 cells along its shorter side. Of scale s the boxes have int(80 s) cells and lie half a box apart,
    and at the far border (TransFGU, public code: 142 boxes on a square with scales .5, .4, .3, .2, and 306 on 1:2).

    Args:
        height: of the frame.
        width: of the frame.
        scales: sides of the boxes over the frame's shorter side.
    """
    cell = min(height, width) / ANCHOR_CELLS
    rows, columns = round(height / cell), round(width / cell)
    boxes = []
    for scale in scales:
        side = max(1, int(scale * ANCHOR_CELLS + 1e-9))
        tops, lefts = (_starts(length, side) for length in (rows, columns))
        top, left = (axis.ravel() for axis in np.meshgrid(tops, lefts, indexing="ij"))
        boxes.append(np.stack([left, top, left + side, top + side], axis=1))
    cells: NDArray[np.int64] = np.concatenate(boxes)
    in_frame: NDArray[np.float64] = cells * np.tile([width / columns, height / rows], 2)
    return in_frame


def _starts(length: int, side: int) -> NDArray[np.int64]:
    """Return where boxes of a side begin on an axis: half a box apart, and one that ends at the border."""
    starts = np.arange(0, length - side + 1, max(1, side // 2))
    return starts if starts[-1] == length - side else np.append(starts, length - side)


def coverage(mask: NDArray[np.bool_], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each box (M, 4), in cells of a mask (h, w), that it covers, exact for parts of cells."""
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    integral[1:, 1:] = mask.cumsum(0).cumsum(1)
    left, top, right, bottom = boxes.T

    def below(y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        row, column = (
            np.clip(np.floor(at).astype(int), 0, n - 1) for at, n in zip((y, x), mask.shape, strict=True)
        )
        down, across = y - row, x - column
        upper = integral[row, column] * (1 - across) + integral[row, column + 1] * across
        lower = integral[row + 1, column] * (1 - across) + integral[row + 1, column + 1] * across
        value: NDArray[np.float64] = upper * (1 - down) + lower * down
        return value

    covered = below(bottom, right) - below(top, right) - below(bottom, left) + below(top, left)
    share: NDArray[np.float64] = covered / ((right - left) * (bottom - top))
    return share


def cell_shares(boxes: NDArray[Real], grid: tuple[int, int]) -> NDArray[Real]:
    """Return how much of each cell of a grid (h, w) lies under each box (M, 4), in cells: (M, h, w), from 0 to 1."""

    def along(start: NDArray[Real], stop: NDArray[Real], cells: int) -> NDArray[Real]:
        first = np.arange(cells, dtype=start.dtype)
        shared = np.minimum(stop[:, None], first + 1) - np.maximum(start[:, None], first)
        clipped: NDArray[Real] = np.clip(shared, 0, 1)
        return clipped

    left, top, right, bottom = boxes.T
    shares: NDArray[Real] = along(top, bottom, grid[0])[:, :, None] * along(left, right, grid[1])[:, None]
    return shares


FOREGROUND, BACKGROUND = 1, 0
"""The tags of anchors."""


def covered_anchors(
    attention: NDArray[np.floating[Any]],
    boxes: NDArray[np.float64],
    foreground: float,
    background: float,
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which boxes (M, 4) are kept by the CLS attention under them, and their tags.

    Foreground is where the mean over the heads exceeds its mean over the image. A box is kept as foreground where
    more than ``foreground`` of it is, as background where more than ``background`` of it is not (TransFGU, public
    code).

    Args:
        attention: (h, w, heads) of the frame, from 0.
        boxes: in cells of the attention.
        foreground: share from 0 to 1.
        background: share from 0 to 1; 1 keeps no background.
    """
    mean = np.asarray(attention, np.float64).mean(-1)
    share = coverage(mean > mean.mean(), boxes)
    inside, outside = share > foreground, 1 - share > background
    return inside | outside, np.where(inside, FOREGROUND, BACKGROUND)


def pyramid(height: int, width: int, levels: int, overlap: float) -> Regions:
    """Return the boxes of a pyramid: level 0 is the image, level l a grid of (l + 1) x (l + 1) boxes; tags are levels.

    Args:
        height: of the image.
        width: of the image.
        levels: highest level.
        overlap: share of a box's side that the next one covers too, from 0 to below 1.
    """
    boxes, tags = [], []
    for level in range(levels + 1):
        spans = [_spans(length, level + 1, overlap) for length in (height, width)]
        boxes += [(left, top, right, bottom) for top, bottom in spans[0] for left, right in spans[1]]
        tags += [level] * (level + 1) ** 2
    return Regions(np.array(boxes, np.int64), np.full(len(boxes), -1), np.array(tags, np.int64))


def _spans(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """Return ``count`` equal [start, stop) that cover a length, each with ``overlap`` of its side on the next."""
    side = length / (1 + (count - 1) * (1 - overlap))
    size = math.ceil(side - 1e-9)  # rounded down, spans without overlap would leave pixels out
    starts = np.linspace(0, length - size, count).round().astype(int)
    return [(int(start), int(start) + size) for start in starts]


def to_pixels(boxes: NDArray[np.float64], height: int, width: int) -> NDArray[np.int64]:
    """Return boxes (M, 4) of an image (height, width) in whole pixels, at least one each way."""
    limit = np.array([width, height])
    start = np.clip(np.floor(boxes[:, :2] + 0.5), 0, limit - 1)
    stop = np.clip(np.maximum(np.floor(boxes[:, 2:] + 0.5), start + 1), 1, limit)
    return np.concatenate([start, stop], axis=1).astype(np.int64)
