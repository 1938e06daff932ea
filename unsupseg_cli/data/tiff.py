"""TIFF files that Pillow gives wrongly or not at all: planes, many bands, wide colours; and what is dropped of any."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is odd in a file is said by whoever reads it

SUFFIXES = frozenset({".tif", ".tiff"})
_GRAY, _RGB = {0, 1}, 2  # photometric interpretations that hold plain numbers
_ALPHA = {1, 2}
_SEPARATE = 2  # planar configuration: one plane after the other
_PILLOW_GRAY = {"uint8", "uint16", "int16", "uint32", "int32", "float32", "bool"}


@dataclass(frozen=True)
class TiffHeader:
    """What the first page of a TIFF holds.

    Attributes:
        height: rows as stored.
        width: columns as stored.
        bands: values of a pixel.
        dtype: type of a value, empty where there is none for it.
        orientation: EXIF orientation.
        alpha: whether the last band is transparency.
        plain: whether values are gray or RGB, not an index, CMYK or the like.
        separate: whether planes lie one after the other.
        pages: full images in the file.
    """

    height: int
    width: int
    bands: int
    dtype: str
    orientation: int
    alpha: bool
    plain: bool
    separate: bool
    pages: int

    @property
    def is_of_pillow(self) -> bool:
        """Whether Pillow gives the values as they are meant."""
        if not self.plain:
            return True
        if self.bands == 1:
            return self.dtype in _PILLOW_GRAY or not self.dtype
        colors = self.bands - self.alpha
        return self.dtype == "uint8" and not self.separate and colors in (1, 3)

    def remarks(self) -> list[str]:
        """Return what of the file is not seen."""
        found = []
        colors = self.bands - self.alpha
        if self.plain and colors not in (1, 3):
            shown = "the first three are taken as red, green and blue" if colors > 3 else "the first is taken"
            found.append(f"{colors} bands: {shown}, the others are dropped")
        if self.pages > 1:
            found.append(f"{self.pages} pages: the first is taken, the others are dropped")
        if self.plain and self.bands > 1 and self.dtype not in ("uint8", "bool"):
            found.append(f"{self.dtype} colours: scaled to 8 bits")
        return found


def read_header(path: Path) -> TiffHeader | None:
    """Return what a TIFF holds, None where the file is none or is damaged."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            bands = int(page.samplesperpixel)
            extra = tuple(int(value) for value in page.extrasamples)
            return TiffHeader(
                height=int(page.imagelength),
                width=int(page.imagewidth),
                bands=bands,
                dtype="" if page.dtype is None else page.dtype.name,
                orientation=int(page.tags.valueof(274, default=1)),
                alpha=bool(extra) and extra[-1] in _ALPHA and bands in (2, 4),
                plain=int(page.photometric) in _GRAY | {_RGB},
                separate=int(page.planarconfig) == _SEPARATE and bands > 1,
                pages=sum(
                    not (one.is_reduced or one.is_mask)
                    for one in file.pages
                    if isinstance(one, tifffile.TiffPage)
                )
                or 1,
            )
    except Exception:  # damaged files raise anything
        return None


def read_bands(path: Path) -> NDArray[np.generic]:
    """Return the values (H, W, S) of the first page as they are stored; raises whatever tifffile does."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        values = page.asarray()
        if int(page.planarconfig) == _SEPARATE and page.samplesperpixel > 1:
            values = np.moveaxis(values, 0, -1)
        return np.asarray(values).reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
