"""Fonts for text that others chose: names of classes and images, in any script that a font of this machine has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(text: str, size: int) -> Font:
    """Return a font of a size in pixels that has the letters of a text.

    Pillow's own font has hardly a letter beyond ASCII, matplotlib's has Latin, Greek, Cyrillic, Hebrew and Arabic. For
    others the fonts of the machine are looked through; where none has all of them, matplotlib's draws boxes for them.
    """
    if text.isascii():
        return ImageFont.load_default(size)
    letters = frozenset(ord(char) for char in text if char.isprintable())
    return ImageFont.truetype(_file_with(letters), size)


@lru_cache(maxsize=1024)
def _file_with(letters: frozenset[int]) -> str:
    return next((file for file in _files() if letters <= _letters_of(file)), next(_files()))


def _files() -> Iterator[str]:
    """Yield font files: matplotlib's, and only if that does not do, those of the machine."""
    import matplotlib

    yield str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    from matplotlib.font_manager import findSystemFonts

    yield from sorted(findSystemFonts())


@cache
def _letters_of(file: str) -> frozenset[int]:
    """Return the letters that a font file has; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
