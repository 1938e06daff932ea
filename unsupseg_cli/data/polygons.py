"""Outlines of masks, along the edges of their pixels."""

from __future__ import annotations

from typing import Any

import contourpy
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Ring = NDArray[np.float64]


def outlines(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Return the polygons of a mask (H, W) as COCO has them, each a list x, y, x, y, ...

    A connected part is a polygon each. Its holes, which COCO's polygons cannot tell, are joined to its outline by a
    line that is walked both ways, and so bounds nothing: drawn by either rule, even-odd or winding, polygons are the
    mask.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corner = (columns[0], rows[0])
    return [(_joined(outer, holes) + corner).ravel().tolist() for outer, *holes in _parts(inside)]


def _parts(mask: NDArray[np.bool_]) -> list[list[Ring]]:
    """Return of each part its outline and those of its holes: corners (n, 2) as x, y.

    Every pixel is given as its four corners, so that the contours between pixels, where two values stand in one place,
    run along their edges.
    """
    values = np.pad(mask.repeat(2, 0).repeat(2, 1).astype(np.float64), 1)
    y, x = (np.arange(side + 1.0).repeat(2) for side in mask.shape)
    contours = contourpy.contour_generator(x, y, values, fill_type=contourpy.FillType.OuterOffset)
    filled: Any = contours.filled(0.5, np.inf)
    return [
        [_corners(ring) for ring in np.split(points, offsets[1:-1].astype(np.int64))]
        for points, offsets in zip(*filled, strict=True)
    ]


def _corners(ring: Ring) -> Ring:
    """Return the corners of a closed ring (n, 2), each once."""
    ring = ring[(ring != np.roll(ring, 1, 0)).any(1)]
    after, before = np.roll(ring, -1, 0) - ring, ring - np.roll(ring, 1, 0)
    turns: NDArray[np.bool_] = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return ring[turns]


def _joined(outline: Ring, holes: list[Ring]) -> Ring:
    """Return an outline that walks to each hole, around it and back, where the two are nearest."""
    for hole in holes:
        nearest: Any = KDTree(outline).query(hole)
        start = int(nearest[0].argmin())
        at = int(nearest[1][start])
        around = np.roll(hole, -start, 0)
        outline = np.concatenate([outline[: at + 1], around, around[:1], outline[at:]])
    return outline
