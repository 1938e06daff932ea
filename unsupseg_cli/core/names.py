"""Names that somebody else chose (folders, images, classes) as names of files and as text on a terminal."""

from __future__ import annotations

import hashlib
import unicodedata

_LONGEST = 200  # bytes: file systems take 255, and suffixes and prefixes of temporary files come on top
_DIGITS = 8


def file_name(text: str, longest: int = _LONGEST) -> str:
    """Return a text as the name of one file that is neither hidden nor an option, and that ends no line.

    A name that is too long is cut, and told apart from others by a digest of the whole.
    """
    composed = unicodedata.normalize("NFC", text)
    name = "".join("_" if char in "/\\" or _is_control(char) else char for char in composed)
    if name[:1] in (".", "-", ""):
        name = f"_{name[1:]}"
    raw = name.encode()
    if len(raw) <= longest:
        return name
    digest = hashlib.sha256(raw).hexdigest()[:_DIGITS]
    return f"{raw[: longest - _DIGITS - 1].decode(errors='ignore')}-{digest}"


def file_path(key: str) -> str:
    """Return the key of an image as a relative path without a suffix, by `file_name` of each part."""
    return "/".join(map(file_name, key.split("/")))


def visible(text: str) -> str:
    r"""Return a text on one line in which control characters, which a terminal would obey, are written as ``\x1b``."""
    return "".join(repr(char)[1:-1] if _is_control(char) else char for char in text)


def has_controls(text: str) -> bool:
    """Tell whether a text has control characters; joiners and marks of direction, which scripts need, are none."""
    return any(unicodedata.category(char) == "Cc" for char in text)


def cell(text: str) -> str:
    """Return a text as a cell of a table that a spreadsheet program takes for text and not for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
