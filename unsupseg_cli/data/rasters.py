"""Images on the ground: which pixels hold data, where they lie, and reading them by windows (rasterio, extra `geo`)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.reading import Window
from unsupseg_cli.data.tiff import SUFFIXES, read_header

PLACE_BY = "place_by"
"""Tag of a GeoTIFF of classes whose image tells its place by other means than a transform: which."""
_LOOK = 16  # of this many pixels of a side one is looked at to find windows without data


@dataclass(frozen=True)
class Windows:
    """How large images are cut.

    Attributes:
        side: of a window in pixels; images of at most this size stay whole.
        overlap: share of a window that its neighbour covers too, at least.
        whole: leave out windows with a pixel that holds no data; else those without one that does.
    """

    side: int
    overlap: float = 0.0
    whole: bool = False

    def of(self, height: int, width: int) -> list[Window]:
        """Return the windows of an image; all are of one size, evenly spread."""
        rows, columns = (_starts(length, self.side, self.overlap) for length in (height, width))
        sides = min(self.side, height), min(self.side, width)
        return [(top, left, *sides) for top in rows for left in columns]


@dataclass(frozen=True)
class Georeference:
    """Where an image lies: WKT of its coordinate system, empty without one, and the six numbers of its transform.

    These map column and row to x and y: x = a column + b row + c, y = d column + e row + f. Where the file tells its
    place ``by`` other means, which are not read, it says by which, and there is neither system nor transform.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]
    height: int
    width: int
    by: str = ""

    @property
    def is_nowhere(self) -> bool:
        """Whether the file tells no place at all: neither a coordinate system nor a transform."""
        return not self.crs and self.transform == (1, 0, 0, 0, 1, 0)


def is_raster(path: Path) -> bool:
    """Tell whether a file is a TIFF with tags of a place on the ground, or of pixels without data."""
    header = read_header(path) if path.suffix.lower() in SUFFIXES else None
    return header is not None and header.is_raster


@cache
def has_rasterio() -> bool:
    """Tell whether the extra `geo` is installed."""
    return find_spec("rasterio") is not None


def require_rasterio(why: str) -> None:
    """Raise UsageError where the extra `geo` is missing."""
    if not has_rasterio():
        raise UsageError(f"{why} needs the package rasterio: pip install 'unsupseg[geo]'.")


def read_window(path: Path, window: Window, raw: bool = False) -> NDArray[np.generic]:
    """Return the stored values (h, w, S) of a window of a TIFF; without ``raw`` GDAL brings CMYK and others to RGB."""
    with open_raster(f"GTIFF_RAW:{path}" if raw else path) as raster:
        values: NDArray[np.generic] = raster.read(window=_as_slices(window))
    return np.moveaxis(values, 0, -1)


def valid_pixels(path: Path, window: Window | None = None) -> NDArray[np.bool_] | None:
    """Return which pixels (h, w) of a raster, or of a window of it, hold data; None where all do by the file."""
    with open_raster(path) as raster:
        if _all_valid(raster):
            return None
        mask = raster.dataset_mask(window=None if window is None else _as_slices(window))
    return np.asarray(mask > 0)


def coarse_validity(path: Path) -> NDArray[np.bool_] | None:
    """Return of every 16th pixel of a raster, both ways, whether it holds data; None where all do by the file."""
    with open_raster(path) as raster:
        if _all_valid(raster):
            return None
        shape = (-(-raster.height // _LOOK), -(-raster.width // _LOOK))
        return np.asarray(raster.dataset_mask(out_shape=shape) > 0)


def part_of(coarse: NDArray[np.bool_], window: Window) -> NDArray[np.bool_]:
    """Return the part of what `coarse_validity` gave that lies in a window, at least one value."""
    top, left, height, width = window
    bottom, right = -(-(top + height) // _LOOK), -(-(left + width) // _LOOK)
    return coarse[top // _LOOK : bottom, left // _LOOK : right]


def georeference(path: Path) -> Georeference:
    """Return where a raster lies."""
    with open_raster(path) as raster:
        a, b, c, d, e, f = map(float, raster.transform[:6])
        by = _other_means(raster) if (a, b, c, d, e, f) == (1, 0, 0, 0, 1, 0) else ""
        crs = raster.crs.to_wkt() if raster.crs and not by else ""
        return Georeference(crs, (a, b, c, d, e, f), raster.height, raster.width, by)


def _other_means(raster: Any) -> str:
    """Return by what a raster without a transform tells its place, empty where it tells none."""
    if raster.gcps[0]:
        return "ground control points"
    return "a sensor model (RPC)" if raster.rpcs else ""


@contextmanager
def open_raster(path: Path | str, mode: str = "r", **profile: Any) -> Iterator[Any]:
    """Open a TIFF with rasterio, or make one of a ``profile``; other drivers of GDAL are not asked."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, mode, driver="GTiff", **profile) as raster:
            yield raster


def inner_parts(windows: list[Window]) -> dict[Window, Window]:
    """Return the part of each window that counts where windows of one image overlap: up to the middle of the overlap.

    These parts of windows that cover an image cover it, each pixel once; of others, what the windows cover.
    """
    rows = _cuts(sorted({(top, top + height) for top, _, height, _ in windows}))
    columns = _cuts(sorted({(left, left + width) for _, left, _, width in windows}))
    parts = {}
    for window in windows:
        (top, bottom), (left, right) = rows[window[0]], columns[window[1]]
        parts[window] = (top, left, bottom - top, right - left)
    return parts


def _cuts(spans: list[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Return by its start the part of each span [start, stop) that counts."""
    middles = [(after[0] + before[1]) // 2 for before, after in pairwise(spans)]
    edges = [spans[0][0], *middles, spans[-1][1]]
    return {
        start: (max(start, edges[index]), min(stop, edges[index + 1]))  # between spans may be a gap
        for index, (start, stop) in enumerate(spans)
    }


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    count = math.ceil((length - side) / max(1, int(side * (1 - overlap)))) + 1
    return [round(index * (length - side) / (count - 1)) for index in range(count)]


def _as_slices(window: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    top, left, height, width = window
    return (top, top + height), (left, left + width)


def _all_valid(raster: Any) -> bool:
    from rasterio.enums import MaskFlags

    return all(flags == [MaskFlags.all_valid] for flags in raster.mask_flag_enums)
