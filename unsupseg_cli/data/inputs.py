"""Images as people name them: files, folders, patterns, lists of all these."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from unsupseg_cli.core.address import as_written, is_address
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.paths import LIST, anchored

_PATTERN = set("*?[")


def expand(names: Sequence[Path]) -> list[Path]:
    """Return the files and folders that names mean, each once, in their order; those of a pattern sorted.

    ``*``, ``?``, ``[...]`` and ``**`` (any folders) are patterns, unless a file is called so. ``@FILE`` is a list: a
    name on each line, relative to the list; empty lines and those that begin with ``#`` are none.

    Raises:
        UsageError: a file does not exist, a pattern matches nothing, or a list cannot be read or lists none.
    """
    return list(dict.fromkeys(path for name in names for path in _meant(str(name))))


def _meant(text: str) -> Iterable[Path]:
    path = Path(text)
    if path.exists():
        return [path]
    if text.startswith(LIST):
        return _listed(Path(text[1:]))
    if _PATTERN & set(text):
        matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - of absolute patterns too
        if not matches:
            raise UsageError(f"No file matches '{text}'; give images, folders of images, or another pattern.")
        return map(Path, matches)
    raise UsageError(f"'{path}' does not exist; give images or folders of images.")


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise UsageError(f"The list '{path}' cannot be read ({reason}).") from None
    stripped = [line.strip(" \t\r") for line in lines]
    names = [line for line in stripped if line and not line.startswith("#")]
    if not names:
        raise UsageError(f"The list '{path}' names no images; expected one on each line.")
    if far := [name for name in names if is_address(name)]:
        raise UsageError(
            f"The list '{path}' names the address '{as_written(far[0])}', and lists name what is on this machine: give "
            "the address itself."
        )
    found: list[Path] = []
    for name in names:
        try:
            found += _meant(anchored(name, path.parent))
        except UsageError as error:
            raise UsageError(f"Line {stripped.index(name) + 1} of the list '{path}': {error}") from None
    return found
