"""Paths as people write them: ``~`` is their home; addresses and patterns are named as what they are."""

from __future__ import annotations

import os
import re
from pathlib import Path

from unsupseg_cli.core.address import as_written, is_address, is_file_address

LIST = "@"
"""What the name of a list of images begins with."""
_PATTERN = re.compile(r"[*?]|\[[^\]]+\]")


def local_path(text: str, patterns: bool = False) -> str:
    """Return a path with ``~`` expanded; ``patterns`` are left as they are where they may be given.

    Raises:
        ValueError: it is an address (``s3://``, ``https://``), or a pattern with ``*`` that no file is called like.
    """
    if is_address(text):
        kind = text.partition(":")[0]
        what = (
            "write the path without file://"
            if is_file_address(text)
            else "give a path here, of a copy where it is to be read"
        )
        raise ValueError(f"'{as_written(text)}' is an address ({kind}), not a path on this machine: {what}")
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
