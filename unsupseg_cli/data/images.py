"""Reading any image as RGB."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from unsupseg_cli.core.errors import UnsupsegError, reason_of
from unsupseg_cli.data.rasters import has_rasterio, read_window, require_rasterio, valid_pixels
from unsupseg_cli.data.reading import Reading, Window
from unsupseg_cli.data.tiff import (
    CIELAB,
    CMYK,
    JPEG,
    PALETTE,
    SUFFIXES,
    YCBCR,
    TiffHeader,
    as_meant,
    color_table,
    read_bands,
    read_header,
)
from unsupseg_cli.data.video import is_video, read_frame, require_av, video_header

T = TypeVar("T")

_OPTIONAL = {  # suffix -> the package without which Pillow does not read it
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".avif": "pillow-avif-plugin",
    ".jp2": "pillow",  # with OpenJPEG
    ".j2k": "pillow",
}


def _readable_suffixes() -> frozenset[str]:
    """Return those of `_OPTIONAL` that Pillow and its plugins read here."""
    for plugin, register in (("pillow_heif", "register_heif_opener"), ("pillow_avif", "")):
        with suppress(ImportError):
            module = import_module(plugin)
            if register:
                getattr(module, register)()
    Image.preinit()
    for name in (
        "Tiff",
        "WebP",
        "Jpeg2K",
        "Avif",
    ):  # the others of `FORMATS`; all of Pillow's take longer to load
        with suppress(ImportError):
            import_module(f"PIL.{name}ImagePlugin")
    readable = {suffix for suffix in _OPTIONAL if Image.EXTENSION.get(suffix) in Image.OPEN}
    if not features.check("avif") and "pillow_avif" not in sys.modules:
        readable -= {".avif"}
    if not features.check("jpg_2000"):
        readable -= {".jp2", ".j2k"}
    return frozenset(readable)


IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"}) | _readable_suffixes()
PLUGINS = {suffix: package for suffix, package in _OPTIONAL.items() if suffix not in IMAGE_SUFFIXES}
"""What would have to be installed to read further suffixes."""

_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = tuple(name for name in _FORMATS if name in Image.OPEN)
"""What a file may hold, whatever its name ends in: others of Pillow's formats start programs, such as Ghostscript."""
MAX_PIXELS = 178_956_970
"""Larger images are refused by their header: such files are more often bombs than photographs.

Pillow itself refuses from here on, twice its ``MAX_IMAGE_PIXELS``; that global is left as it is.
"""

MATLAB_IMAGE, MATLAB_LABEL = "img", "gt"
"""Names of the arrays in the community's ``.mat`` files of Potsdam. Source: IIC's data preparation, STEGO."""

BACKGROUND = (255, 255, 255)
"""What transparent pixels are laid over."""

_PNG, _JP2, _J2K = b"\x89PNG\r\n\x1a\n", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xffO\xffQ"
_RAW_MODES = {CMYK: "CMYK", CIELAB: "LAB"}  # of Pillow, by the photometric interpretation of a TIFF
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF orientation -> what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = {5, 6, 7, 8}


class UnreadableImage(UnsupsegError):  # noqa: N818 - says what it is, as the user reads it
    """An image that cannot be read: missing, truncated, no image at all, or too large."""


def image_size(path: Path, reading: Reading | None = None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (height, width) as `read_image` gives them, from the header (of a ``.mat``, from its pixels).

    Raises:
        UnreadableImage: the header is unreadable or announces more than ``max_pixels`` pixels.
    """
    if reading is not None and reading.window is not None:
        return reading.window[2:]
    if is_video(path):
        video = _of_video(path, lambda: video_header(path))
        return video.height, video.width
    if path.suffix == ".mat":
        height, width = read_matlab(path, MATLAB_IMAGE).shape[:2]
        return height, width
    if header := _tiff_beyond_pillow(path, max_pixels):
        turned = header.orientation in _SWAPS_SIDES
        return (header.width, header.height) if turned else (header.height, header.width)
    with open_image(path, max_pixels) as image:
        turned = _orientation(image) in _SWAPS_SIDES
        return (image.width, image.height) if turned else (image.height, image.width)


def read_image(path: Path, reading: Reading | None = None, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image as uint8 RGB (H, W, 3), turned upright by its EXIF orientation.

    Transparent pixels are laid over white, those of a raster that hold no data are black (`read_known_values`); of
    several frames or pages the first is read. Values of more than 8 bits
    become 8 bits by the range that ``reading`` has for their type. Without one the image is looked at by itself: the
    narrowest usual range that holds all its values is taken, 0..1 (floats only), 0..255 (not of 16 bits), 0..65535,
    else that from the smallest to the largest. NaN is black.

    Raises:
        UnreadableImage: the file is missing, damaged, cut short, or larger than ``max_pixels``.
    """
    reading = reading or Reading()
    header = _tiff(path)
    is_own = header is not None and (header.is_raster or not header.is_of_pillow)
    if is_own or reading.is_part or reading.bands or reading.low is not None:
        return np.ascontiguousarray(_read_as(path, header, reading, max_pixels))
    if path.suffix == ".mat":
        return np.ascontiguousarray(read_matlab(path, MATLAB_IMAGE)[..., :3].astype(np.uint8))
    if _is_wide_color(path):
        values = _wide_colors(path, max_pixels)
        if values.shape[2] in (2, 4):
            return np.ascontiguousarray(_over_white(values, reading))
        return np.ascontiguousarray(_to_colors(values, reading))
    with open_image(path, max_pixels) as image:
        return np.ascontiguousarray(_to_rgb(upright(image), reading))


def read_values(
    path: Path, page: int = 0, window: Window | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.generic]:
    """Read the values (H, W, S) of an image, or of a page or window of it, as they are stored, turned upright.

    Raises:
        UnreadableImage: as `read_image`.
    """
    if is_video(path):
        return _of_video(path, lambda: read_frame(path, page or 1))
    header = _tiff(path)
    if header is not None and header.is_complex:
        raise UnreadableImage(f"The image '{path}' holds complex numbers, which are no colours")
    if window is not None:
        return _window_of(path, header, window)
    if header is not None and header.plain:
        _require_size(path, header, max_pixels)
        return _turn_values(_bands_of(path, page or 1), header.orientation)
    if path.suffix == ".mat":
        return np.atleast_3d(read_matlab(path, MATLAB_IMAGE))
    if _is_wide_color(path):
        return _wide_colors(path, max_pixels)
    with open_image(path, max_pixels) as image:
        if page > 1:
            image.seek(page - 1)
        picture = upright(image)
        whole = picture.mode in {"L", "RGB", "RGBA", "F", "I"} or picture.mode.startswith("I;16")
        return np.atleast_3d(np.asarray(picture if whole else picture.convert("RGB")))


def read_known_values(
    path: Path, page: int = 0, window: Window | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Read the values (H, W, S) of an image, and which pixels (H, W) hold data by the file (TIFF).

    Raises:
        UnreadableImage: as `read_image`.
    """
    values, header = read_values(path, page, window, max_pixels), _tiff(path)
    known = np.ones(values.shape[:2], np.bool_)
    if header is None or page:
        return values, known
    if header.is_raster and has_rasterio():
        valid = _of_raster(path, lambda: valid_pixels(path, window))
        if valid is not None:
            known = _turn_values(valid[..., None], header.orientation)[..., 0].astype(np.bool_)
        return values, known
    return values, ~(values == header.nodata).all(-1) if header.tells_nodata else known


def type_of_values(path: Path) -> str:
    """Return numpy's name of the type that an image's values have, by its header; uint8 where it cannot be read."""
    if path.suffix == ".mat":
        return "uint8"
    if header := _tiff(path):
        return header.dtype or "uint8" if header.plain else "uint8"
    if _is_wide_color(path):
        return "uint16"
    try:
        with open_image(path) as image:
            mode = image.mode
    except UnsupsegError:
        return "uint8"
    return "uint16" if mode.startswith("I;16") else {"I": "int32", "F": "float32"}.get(mode, "uint8")


def _read_as(path: Path, header: TiffHeader | None, reading: Reading, max_pixels: int) -> NDArray[np.uint8]:
    values, known = read_known_values(path, reading.page, reading.window, max_pixels)
    is_asked = reading.bands or reading.low is not None
    if header is not None and header.plain and header.alpha and not is_asked:
        colors = _over_white(values, reading, known, header.premultiplied)
    else:
        try:
            colors = _to_colors(values, reading, known)
        except ValueError as error:
            raise UnreadableImage(f"The image '{path}' does not fit --bands: {error}") from None
    return np.where(known[..., None], colors, np.uint8(0))


def _to_colors(
    values: NDArray[np.generic], reading: Reading, known: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Return RGB by the bands that are asked for, else the first three or the only one; raises ValueError."""
    colors = reading.to_uint8(reading.choose(values), known)
    return np.repeat(colors, 3 // colors.shape[2], axis=2)


def _over_white(
    values: NDArray[np.generic],
    reading: Reading,
    known: NDArray[np.bool_] | None = None,
    premultiplied: bool = False,
) -> NDArray[np.uint8]:
    """Return RGB of values whose last band is transparency, laid over white."""
    rgb = _to_colors(values[..., :-1], reading, known)
    opaque = Reading(rule="none").to_uint8(values[..., -1:]).astype(np.float64) / 255
    front = rgb if premultiplied else opaque * rgb
    laid = np.minimum(np.round(front + (1 - opaque) * np.array(BACKGROUND)), 255)
    return np.asarray(laid, np.uint8)


def _window_of(path: Path, header: TiffHeader | None, window: Window) -> NDArray[np.generic]:
    """Return the values (h, w, S) of a window of a TIFF as they are meant, as those of the whole are."""
    if header is None or header.orientation != 1:
        what = "it is no TIFF or a damaged one" if header is None else "it is turned by its EXIF orientation"
        raise UnreadableImage(f"No window of the image '{path}' can be read: {what}")
    if header.plain:
        values = _of_raster(path, lambda: read_window(path, window))
        # GDAL widens what it has no type for: single bits and halves of floats
        return as_meant(values.astype(header.dtype or values.dtype), header.photometric, header.bits)
    if header.photometric == YCBCR and header.compression == JPEG:
        return _of_raster(path, lambda: read_window(path, window))
    if header.photometric == PALETTE and header.bits <= 8:
        index = _of_raster(path, lambda: read_window(path, window))[..., 0]
        return _of_raster(path, lambda: color_table(path)[index.astype(np.intp)])
    mode = _RAW_MODES.get(header.photometric)
    if mode is None or header.bits != 8:
        raise UnreadableImage(
            f"No window of the image '{path}' can be read: its colours are neither gray, RGB nor of a palette of 8 "
            "bits; bring it to RGB first, or leave --windows out"
        )
    values = _of_raster(path, lambda: read_window(path, window, raw=True))[..., : len(mode)]
    picture = Image.frombytes(mode, (window[3], window[2]), values.tobytes(), "raw", mode)
    return np.asarray(picture.convert("RGB"))


def _of_raster(path: Path, read: Callable[[], T]) -> T:
    """Return what rasterio reads of a file; raises UnreadableImage."""
    require_rasterio("A window of an image")
    return _of_library(path, read)


def _of_video(path: Path, read: Callable[[], T]) -> T:
    """Return what PyAV reads of a file; raises UnreadableImage."""
    require_av()
    return _of_library(path, read)


def _of_library(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError:
        raise UnreadableImage(f"The image '{path}' does not exist") from None
    except Exception as error:  # GDAL and FFmpeg raise anything on damaged files
        raise UnreadableImage(f"The image '{path}' cannot be read: {reason_of(error)}") from None


def _head(path: Path) -> bytes:
    """Return the first bytes of a file, none where it cannot be read."""
    try:
        _require_file(path)
        with path.open("rb") as file:
            return file.read(64)
    except (OSError, UnreadableImage):
        return b""


def _tiff(path: Path) -> TiffHeader | None:
    """Return the header of a file that is a TIFF, whatever its name ends in; None of others and of damaged ones."""
    return read_header(path) if _head(path).startswith(_TIFF) else None


def _is_wide_color(path: Path) -> bool:
    """Tell whether a file is a PNG or JPEG 2000 with colours, or with transparency, of more than 8 bits."""
    head = _head(path)
    if head.startswith(_PNG):
        return head[24:25] == b"\x10" and head[25:26] in (b"\x02", b"\x04", b"\x06")
    if head.startswith(_JP2):  # its header box comes third: height, width, components, bits - 1
        place = head.find(b"ihdr")
        return (
            place > 0 and head[place + 13 : place + 14] > b"\x01" and head[place + 14 : place + 15] > b"\x07"
        )
    # of a bare codestream: marker, lengths, capabilities, eight numbers of four bytes, components, bits - 1
    return head.startswith(_J2K) and head[40:42] > b"\0\x01" and head[42:43] > b"\x07"


def _wide_colors(path: Path, max_pixels: int) -> NDArray[np.generic]:
    """Return the values (H, W, S) of what `_is_wide_color` tells of, turned upright: Pillow keeps 8 bits of them."""
    with open_image(path, max_pixels) as image:
        orientation = _orientation(image)
    try:
        data = path.read_bytes()
        decode = imagecodecs.png_decode if data.startswith(_PNG) else imagecodecs.jpeg2k_decode
        return _turn_values(np.atleast_3d(decode(data)), orientation)
    except Exception as error:  # decoders raise anything on damaged files
        raise UnreadableImage(f"The image '{path}' cannot be read: {error or type(error).__name__}") from None


def remarks_on_images(paths: Sequence[Path], pages: bool = False, chosen: bool = False) -> list[str]:
    """Return what is dropped of some images, by how many of them; they are looked at, not decoded.

    With ``pages`` each page is an image of its own, so that none is dropped; with ``chosen`` bands were asked for.
    """
    by_remark: dict[str, list[Path]] = {}
    paths = list(dict.fromkeys(paths))  # of pages and windows one file each
    for path in paths:
        header = _tiff(path)
        remarks = (replace(header, pages=1) if pages else header).remarks(chosen) if header else []
        if header is None and (frames := _frames(path)) > 1:
            remarks.append(f"{frames} frames: the first is taken, the others are dropped")
        for remark in remarks:
            by_remark.setdefault(remark, []).append(path)
    return [f"{remark} ({len(files)} of {len(paths)} images looked at, such as '{files[0].name}')"
            for remark, files in by_remark.items()]  # fmt: skip


def _frames(path: Path) -> int:
    """Return the pictures of a file that is no TIFF, 1 where it cannot be read; by its header, but of a GIF.

    Smaller pictures beside the first of a photo (MPO) are thumbnails and gain maps, which nobody misses.
    """
    if path.suffix == ".mat" or is_video(path):
        return 1
    try:
        with open_image(path) as image:
            count = int(getattr(image, "n_frames", 1))
            if image.format != "MPO":
                return count
            size, alike = image.size, 1
            for number in range(1, count):
                with suppress(Exception):  # one that is not where the header says
                    image.seek(number)
                    alike += image.size == size
            return alike
    except UnreadableImage:
        return 1


def _tiff_beyond_pillow(path: Path, max_pixels: int) -> TiffHeader | None:
    """Return the header of a TIFF that Pillow gives wrongly or not at all, None of anything else."""
    header = _tiff(path)
    if header is None or header.is_of_pillow:
        return None
    _require_size(path, header, max_pixels)
    return header


def _require_size(path: Path, header: TiffHeader, max_pixels: int) -> None:
    if header.width * header.height * max(1, header.bands // 3) > max_pixels:
        raise _too_large(path, f"{header.width}x{header.height} of {header.bands} bands", max_pixels)


def _bands_of(path: Path, page: int = 1) -> NDArray[np.generic]:
    """Return the stored values (H, W, S) of a page of a TIFF; raises UnreadableImage."""
    try:
        values = read_bands(path, page)
    except Exception as error:  # of damaged files, and of compressions that are not known
        reason = str(error) or type(error).__name__
        raise UnreadableImage(f"The image '{path}' cannot be read: {reason.splitlines()[0]}") from None
    return values


def _turn_values(values: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """Turn stored values (H, W, S) upright by an EXIF orientation."""
    if orientation in _SWAPS_SIDES:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def read_matlab(path: Path, name: str) -> NDArray[np.generic]:
    """Return the array called ``name`` of a MATLAB file up to version 7.2.

    Raises:
        UnreadableImage: the file is missing, damaged, of version 7.3, or has no such array.
    """
    from scipy.io import loadmat

    _require_file(path)
    try:
        values: NDArray[np.generic] = loadmat(path, variable_names=[name])[name]
        return values
    except FileNotFoundError:
        raise UnreadableImage(f"The image '{path}' does not exist") from None
    except Exception as error:  # damaged files raise anything
        reason = str(error) or type(error).__name__
        raise UnreadableImage(f"The array '{name}' of '{path}' cannot be read: {reason}") from None


def _require_file(path: Path) -> None:
    """Raise UnreadableImage for a pipe or a device, which would be waited for in vain."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UnreadableImage(f"The image '{path}' is a pipe or a device, not a file")


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_image(path: Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file of a bounded size; whatever Pillow raises while it is used becomes UnreadableImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is not the user's concern
            _require_file(path)
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise _too_large(path, f"{image.width}x{image.height}", max_pixels)
                yield image
    except UnsupsegError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(path, "too many", max_pixels) from None
    except FileNotFoundError:
        raise UnreadableImage(f"The image '{path}' does not exist") from None
    except UnidentifiedImageError:
        reason = _kind_of(path)
        raise UnreadableImage(f"The image '{path}' cannot be read: {reason}") from None
    except (
        Exception
    ) as error:  # decoders raise anything on damaged files: SyntaxError, struct.error, KeyError, ...
        reason = reason_of(error)
        raise UnreadableImage(f"The image '{path}' cannot be read: {reason}") from None


def _kind_of(path: Path) -> str:
    """Say what a file is that is no image."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself; run `git lfs pull`"
    if head.lstrip().startswith(b"<"):
        return "it is a web page or XML, not an image; download it again"
    return "it is of no known image format" if head else "the file is empty"


def orientation_of(path: Path) -> int:
    """Return the EXIF orientation of an image file; 1 where it has none, one that turns nothing, or is unreadable."""
    try:
        if path.suffix == ".mat":
            return 1
        with open_image(path) as image:
            if image.format == "TIFF":  # Pillow turns a TIFF by itself
                orientation = int(getattr(image, "tag_v2", {}).get(_EXIF_ORIENTATION, 1))
            else:
                orientation = _orientation(image)
            return orientation if orientation in _UPRIGHT else 1
    except UnreadableImage:
        return 1


def upright(image: Image.Image) -> Image.Image:
    """Return an opened image turned by its EXIF orientation; damaged metadata turn nothing."""
    method = _UPRIGHT.get(_orientation(image))
    image.load()
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation before decoding, 1 (upright) if there is none or it cannot be read.

    Pillow turns a TIFF by itself. Of a PNG only metadata before the pixels count: Pillow's own method would decode
    the whole image to look for later ones.
    """
    if image.format == "TIFF":
        return 1
    try:
        return int(Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata raise anything
        return 1


def _too_large(path: Path, announced: str, max_pixels: int) -> UnreadableImage:
    return UnreadableImage(
        f"The image '{path}' announces {announced} pixels, more than the {max_pixels:,} that are accepted; cut it "
        f"into pieces{', or read it by --windows 1024' if path.suffix.lower() in SUFFIXES else ''}"
    )


def _to_rgb(image: Image.Image, reading: Reading) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        gray = reading.to_uint8(np.asarray(image))
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
        return np.asarray(Image.alpha_composite(page, layer).convert("RGB"), np.uint8)
    rgb: NDArray[np.uint8] = np.asarray(image.convert("RGB"))
    return rgb
