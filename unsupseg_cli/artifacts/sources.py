"""The files that a call reads, as they were when its key was made."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from unsupseg_cli.artifacts.canonical import digest_file, digest_json
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.core.errors import UnsupsegError

_PART = "sources"
UNREADABLE = "unreadable"
"""Stands for the digest of a file whose bytes cannot be read; it is asked again by every call."""


def stamp(path: Path) -> list[int]:
    """Return what changes with a file: size, times of its content and of its entry, and its number on the disk."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def digest_or_unreadable(path: Path) -> str:
    """Return the digest of a file's bytes, or `UNREADABLE`."""
    try:
        return digest_file(path) if path.is_file() else UNREADABLE  # a pipe would be waited for in vain
    except OSError:
        return UNREADABLE


class Sources:
    """What the key of one call was made from: each file with its stamp and digest then."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[list[int], str]] = {}

    def add(self, path: Path, seen: list[int], digest: str) -> None:
        """Note a file; what was noted first counts."""
        self._seen.setdefault(path, (seen, digest))

    def begin(self, draft: Draft) -> bool:
        """Clear a draft that was begun when a file was another, and return whether it was."""
        state = digest_json(sorted([str(path), *seen[:3]] for path, (seen, _) in self._seen.items()))
        begun = draft.is_done(_PART) and draft.note(_PART) != state
        if begun:
            draft.clear()
        if not draft.is_done(_PART):
            draft.finish(_PART, state)
        return begun

    def require_readable(self, path: Path) -> None:
        """Raise UnsupsegError where a file cannot be read that could be when the key was made."""
        _, digest = self._seen.get(path, ([], UNREADABLE))
        if digest != UNREADABLE and digest_or_unreadable(path) == UNREADABLE:
            raise UnsupsegError(
                f"'{path}' could be read when this call began, and cannot be now: bring it back; then the same call "
                "goes on where it stopped."
            )

    def require_unchanged(self, paths: Iterable[Path] | None = None) -> None:
        """Raise UnsupsegError where a file, of all or of some, is not what it was when the key was made."""
        for path in self._seen if paths is None else paths:
            if path in self._seen and self._is_changed(path):
                state = "was changed" if os.path.lexists(path) else "was removed"
                raise UnsupsegError(
                    f"'{path}' {state} while it was in use, so that nothing was published: call again when the files "
                    "are at rest."
                )

    def _is_changed(self, path: Path) -> bool:
        """Tell whether content may be other; another name or right of the same content does no harm."""
        seen, digest = self._seen[path]
        try:
            now = stamp(path)
        except OSError:
            return True
        if now == seen:
            return False
        size, modified, _, number = seen
        return now[:2] != [size, modified] or now[3] != number or digest_or_unreadable(path) != digest
