"""Reading any image as RGB."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from unsupseg_cli.core.errors import UnsupsegError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"})
MAX_PIXELS = 200_000_000
"""Larger images are refused by their header: such files are more often bombs than photographs."""

BACKGROUND = (255, 255, 255)
"""What transparent pixels are laid over."""

_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = {5, 6, 7, 8}  # EXIF orientations that swap height and width

Image.MAX_IMAGE_PIXELS = None  # the bound is MAX_PIXELS, checked before decoding, with a message of our own


class UnreadableImage(UnsupsegError):  # noqa: N818 - says what it is, as the user reads it
    """An image that cannot be read: missing, truncated, no image at all, or too large."""


def image_size(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (height, width) as `read_image` gives them, from the header.

    Raises:
        UnreadableImage: the header is unreadable or announces more than ``max_pixels`` pixels.
    """
    with _open(path, max_pixels) as image:
        height, width = image.height, image.width
        try:
            turned = image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED
        except (OSError, ValueError, SyntaxError):
            turned = False  # damaged metadata: `read_image` does not turn the image either
        if turned and image.format != "TIFF":  # Pillow already gives the upright size of a TIFF
            height, width = width, height
    return height, width


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image as uint8 RGB (H, W, 3), turned upright by its EXIF orientation.

    Transparent pixels are laid over white. 16-bit values are divided by 257; 32-bit integers and floats, which
    have no agreed range, are stretched from their smallest to their largest value.

    Raises:
        UnreadableImage: the file is missing, damaged, cut short, or larger than ``max_pixels``.
    """
    try:
        with _open(path, max_pixels) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return np.ascontiguousarray(_to_rgb(upright))
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UnreadableImage(f"The image '{path}' cannot be decoded ({error})") from None


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is not the user's concern
            image = Image.open(path)
    except FileNotFoundError:
        raise UnreadableImage(f"The image '{path}' does not exist") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UnreadableImage(f"'{path}' is no image that can be read ({error})") from None
    if image.width * image.height > max_pixels:
        image.close()
        raise UnreadableImage(
            f"The image '{path}' announces {image.width}x{image.height} pixels, more than the {max_pixels:,} that "
            "are accepted; cut it into pieces"
        )
    return image


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        gray = _gray_to_uint8(np.asarray(image), sixteen=image.mode.startswith("I;16"))
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
        return np.asarray(Image.alpha_composite(page, layer).convert("RGB"), np.uint8)
    rgb: NDArray[np.uint8] = np.asarray(image.convert("RGB"))
    return rgb


def _gray_to_uint8(values: NDArray[np.generic], sixteen: bool) -> NDArray[np.uint8]:
    numbers = values.astype(np.float64)
    if sixteen or (values.dtype.kind in "iu" and 255 < numbers.max() <= 65535 and numbers.min() >= 0):
        return np.round(numbers / 257).astype(np.uint8)
    numbers = np.nan_to_num(numbers)
    low, high = numbers.min(), numbers.max()
    if values.dtype.kind in "iu" and low >= 0 and high <= 255:
        return numbers.astype(np.uint8)
    stretched: NDArray[np.uint8] = np.round(255 * (numbers - low) / max(high - low, 1e-12)).astype(np.uint8)
    return stretched
