"""The picture of an artifact, as a notebook shows it."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from unsupseg_cli.core.errors import UnsupsegError

_SHOWN = 6  # pictures of a folder
_CELL = 320  # pixels of the longer side of each
_WIDEST = 1200  # pixels of what a notebook shows
_TYPES = (".png", ".jpg")


def draw(path: Path) -> Image.Image:
    """Return a picture, or the first few of a folder of pictures in two rows.

    Raises:
        UnsupsegError: it cannot be read.
    """
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in _TYPES)[:_SHOWN]
            return _tiled([_read(file, _CELL) for file in files])
        return _read(path)
    except (OSError, ValueError) as error:
        raise UnsupsegError(f"The picture '{path}' cannot be read ({error}).") from None


def as_png(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file, scaled down to the width of a notebook."""
    buffer = io.BytesIO()
    small = picture.copy()
    small.thumbnail((_WIDEST, _WIDEST * 4))
    small.save(buffer, "png")
    return buffer.getvalue()


def _read(path: Path, side: int | None = None) -> Image.Image:
    with Image.open(path, formats=("PNG", "JPEG")) as opened:
        picture = opened.convert("RGB")
    if side is not None:
        picture.thumbnail((side, side))
    return picture


def _tiled(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures side by side on white, in rows of half as many."""
    columns = -(-_SHOWN // 2)
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    page = Image.new("RGB", (_CELL * max(map(len, rows), default=1), max(1, sum(heights))), "white")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            page.paste(picture, (column * _CELL, sum(heights[:number])))
    return page
