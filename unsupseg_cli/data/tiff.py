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
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # photometric interpretations that hold plain numbers
PALETTE, CMYK, YCBCR, CIELAB = 3, 5, 6, 8  # and some that hold others
_ALPHA, _PREMULTIPLIED = {1, 2}, 1  # kinds of an extra sample
JPEG = 7  # compression
_OF_PILLOW = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000}  # compressions that all of its builds have
_SEPARATE = 2  # planar configuration: one plane after the other
_NODATA = 42113  # GDAL's tag for the value of pixels that nothing is known of
_RASTER_TAGS = (
    33550,
    33922,
    34264,
    34735,
    42113,
    50844,
)  # pixel scale, tie point, transform, GeoKeys, GDAL's nodata, RPC


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
        premultiplied: whether the colours are already weighted by the transparency.
        photometric: what the values stand for, by TIFF's numbers.
        bits: of a value.
        compression: by TIFF's numbers.
        separate: whether planes lie one after the other.
        pages: full images in the file.
        nodata: value of pixels that nothing is known of, if the file names one.
        is_raster: whether it tells a place on the ground, or values that stand for no data.
    """

    height: int
    width: int
    bands: int
    dtype: str
    orientation: int
    alpha: bool
    premultiplied: bool
    photometric: int
    bits: int
    compression: int
    separate: bool
    pages: int
    nodata: float | None = None
    is_raster: bool = False

    @property
    def plain(self) -> bool:
        """Whether values are gray or RGB, not an index, CMYK or the like."""
        return self.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)

    @property
    def is_complex(self) -> bool:
        """Whether values are complex numbers."""
        return self.dtype.startswith("complex")

    @property
    def is_of_pillow(self) -> bool:
        """Whether Pillow gives the values as they are meant."""
        if not self.plain or not self.dtype:
            return True
        is_gray = self.photometric != _RGB and self.bands == 1 and self.bits in (1, 2, 4, 8)
        is_rgb = self.photometric == _RGB and self.bands == 3 and self.bits == 8
        is_known = self.dtype in ("uint8", "bool") and self.compression in _OF_PILLOW
        return is_known and (is_gray or is_rgb) and not self.separate

    @property
    def tells_nodata(self) -> bool:
        """Whether pixels without data are those with a value, stored as it is meant."""
        as_stored = self.photometric in (_BLACK_IS_ZERO, _RGB) and self.bits >= 8
        return self.nodata is not None and as_stored

    def remarks(self, chosen: bool = False) -> list[str]:
        """Return what of the file is not seen; where bands were ``chosen``, only which pages are not."""
        remarks = []
        colors = self.bands - self.alpha
        if self.pages > 1:
            remarks.append(
                f"{self.pages} pages: the first is taken, the others are dropped (--pages takes all)"
            )
        if not self.plain or chosen:
            return remarks
        if colors not in (1, 3):
            shown = "the first three are taken as red, green and blue" if colors > 3 else "the first is taken"
            remarks.append(f"{colors} bands: {shown}, the others are dropped (`extract --bands` chooses)")
        return remarks


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
                premultiplied=bool(extra) and extra[-1] == _PREMULTIPLIED,
                photometric=int(page.photometric),
                bits=_bits_of(page),
                compression=int(page.compression),
                separate=int(page.planarconfig) == _SEPARATE and bands > 1,
                pages=len(_full_pages(file)),
                nodata=_nodata_of(page),
                is_raster=any(tag in page.tags for tag in _RASTER_TAGS),
            )
    except Exception:  # damaged files raise anything
        return None


def _bits_of(page: tifffile.TiffPage) -> int:
    """Return the bits of a value; 8 where bands have different ones, which tifffile spreads."""
    bits = page.bitspersample
    return bits if isinstance(bits, int) else 8


def _nodata_of(page: tifffile.TiffPage) -> float | None:
    try:
        return float(page.tags.valueof(_NODATA))
    except (TypeError, ValueError):  # there is none, or no number
        return None


def pages_of(path: Path) -> tuple[int, int]:
    """Return how many pages of a TIFF have the first one's form, and how many others there are."""
    try:
        with tifffile.TiffFile(path) as file:
            return len(_alike(file)), len(_full_pages(file)) - len(_alike(file))
    except Exception:  # damaged files raise anything
        return 1, 0


def _full_pages(file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Return the full images: no thumbnails, no masks."""
    pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage)]
    return [page for page in pages if not (page.is_reduced or page.is_mask)] or pages[:1]


def _alike(file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Return the full images that have the form of the first one."""
    pages = _full_pages(file)
    return [page for page in pages if (page.shape, page.dtype) == (pages[0].shape, pages[0].dtype)]


def read_bands(path: Path, number: int = 1) -> NDArray[np.generic]:
    """Return the values (H, W, S) of a page, counted from 1, as they are meant; raises whatever tifffile does."""
    with tifffile.TiffFile(path) as file:
        page = _alike(file)[number - 1]
        values = page.asarray()
        if int(page.planarconfig) == _SEPARATE and page.samplesperpixel > 1:
            values = np.moveaxis(values, 0, -1)
        values = np.asarray(values).reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
        return as_meant(values, int(page.photometric), _bits_of(page))


def as_meant(values: NDArray[np.generic], photometric: int, bits: int) -> NDArray[np.generic]:
    """Return stored whole numbers without a sign with 0 for black, and those of 2 to 7 bits spread over 8."""
    if photometric == _WHITE_IS_ZERO and values.dtype.kind in "bu":
        values = np.bitwise_xor(values, values.dtype.type(2**bits - 1))
    if values.dtype == np.uint8 and bits < 8:
        top = 2**bits - 1
        values = ((values.astype(np.uint16) * 255 + top // 2) // top).astype(np.uint8)
    return values


def color_table(path: Path) -> NDArray[np.uint8]:
    """Return the colours (N, 3) of a TIFF's palette."""
    with tifffile.TiffFile(path) as file:
        table: NDArray[np.uint16] = np.asarray(file.pages.first.colormap)
    return (table >> 8).astype(np.uint8).T
