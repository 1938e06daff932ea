"""Paths as people write them: ``~`` is their home; addresses and patterns are named as what they are."""

from __future__ import annotations

import os
import re
from pathlib import Path

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,2}[^/]")
LIST = "@"
"""What the name of a list of images begins with."""
_PATTERN = re.compile(r"[*?]|\[[^\]]+\]")


def local_path(text: str, patterns: bool = False) -> str:
    """Return a path with ``~`` expanded; ``patterns`` are left as they are where they may be given.

    Raises:
        ValueError: it is an address (``s3://``, ``https://``), or a pattern with ``*`` that no file is called like.
    """
    if _ADDRESS.match(text):
        kind, _, place = text.partition(":")
        text = f"{kind}://{place.lstrip('/')}"  # of which pathlib keeps one slash
        what = (
            "write the path without file://"
            if kind == "file"
            else "copy it to this machine and give the path there"
        )
        raise ValueError(f"'{text}' is an address ({kind}), not a path on this machine: {what}")
    path = os.path.expanduser(text)  # noqa: PTH111 - pathlib's raises for unknown users
    if not patterns and _PATTERN.search(path) and not Path(path).exists():
        matches = sum(1 for _ in Path().glob(text)) if not os.path.isabs(path) else 0  # noqa: PTH117 - of text
        hint = f" (it matches {matches:,} files here)" if matches else ""
        raise ValueError(
            f"'{text}' is a pattern, which is not expanded here{hint}: give the folder itself, or name the images "
            "without an option, as in `unsupseg extract 'photos/*.jpg'`"
        )
    return path


def anchored(name: str | Path, folder: Path) -> str:
    """Return a name that means the same from any folder: relative ones are meant from ``folder``; ``~`` is a home."""
    text = str(name)
    if text.startswith(LIST):
        return f"{LIST}{anchored(text[1:], folder)}"
    return str(folder / os.path.expanduser(text))  # noqa: PTH111 - pathlib's raises for unknown users
