"""The local cache of what lies in object storage: folders of bounded size in all, the least recently used go first.

A folder in it is an *entry* once its size was written into a hidden file; the time of that file is that of the last
use. Processes of one machine share a cache. Each lists the entries that it uses in a file beside a lock, which dies
with the process; an entry in use is never dropped.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from unsupseg_cli.artifacts.manifest import MANIFEST
from unsupseg_cli.core.errors import UnsupsegError, UsageError, reason_of

SIZE = ".cached"
"""The hidden file of an entry that holds its bytes."""
DEFAULT_BYTES = 50 * 10**9
_IN_USE = ".in-use"
_ENTRIES = f"*/*/*/{SIZE}"  # of artifacts: workspace, kind, id
_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def default_folder() -> Path:
    """Return the folder of the cache where none is given: in the user's folder of caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unsupseg"


def parse_bytes(text: str) -> int:
    """Return the bytes that a text such as ``50GB`` names; raises ValueError for another text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]B)?", text.strip())
    if match is None or not float(match[1]):
        raise ValueError(f"expected a size such as 50GB, found '{text}'")
    return round(float(match[1]) * _UNITS[match[2] or ""])


_Entry = tuple[float, int, Path]  # time of the last use, bytes, folder


class Cache:
    """A folder of bounded size.

    Args:
        root: the folder; it is made when something comes into it.
        most: bytes of all entries together, at most.
    """

    def __init__(self, root: Path, most: int = DEFAULT_BYTES) -> None:
        self.root, self.most = root.absolute(), most
        self._used: set[Path] = set()
        self._mine: FileLock | None = None

    @classmethod
    def of_environment(cls) -> Cache:
        """Return the cache of $UNSUPSEG_CACHE and $UNSUPSEG_CACHE_SIZE; raises UsageError where the size is none."""
        folder, size = os.environ.get("UNSUPSEG_CACHE"), os.environ.get("UNSUPSEG_CACHE_SIZE")
        try:
            return cls(
                Path(folder) if folder else default_folder(), parse_bytes(size) if size else DEFAULT_BYTES
            )
        except ValueError as error:
            raise UsageError(f"$UNSUPSEG_CACHE_SIZE: {error}.") from None

    def folder(self, name: str) -> Path:
        """Return a folder of the cache, which is there from then on; raises UsageError where it cannot be made."""
        folder = self.root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"The cache '{self.root}' cannot be written ({reason_of(error)}); give another folder with --cache or "
                "$UNSUPSEG_CACHE."
            ) from None
        return folder

    def pin(self, entry: Path) -> None:
        """Keep an entry that is there as long as this process lives."""
        with self._guard():
            self._note(entry)
            with suppress(OSError):
                os.utime(entry / SIZE)

    def make_room(self, entry: Path, size: int, subject: str) -> None:
        """Make room for an entry that is to be fetched, and keep it as long as this process lives.

        Raises:
            UnsupsegError: it is larger than the cache, or than what is not in use of it; nothing was dropped then.
        """
        if size > self.most:
            raise UnsupsegError(
                f"{subject} has {_megabytes(size)}, and the cache '{self.root}' holds {_megabytes(self.most)} at most: "
                "give more with --cache-size or $UNSUPSEG_CACHE_SIZE."
            )
        with self._guard():
            excess, free = self._excess(entry, size)
            if excess > sum(bytes_ for _, bytes_, _ in free):
                raise UnsupsegError(
                    f"{subject} has {_megabytes(size)}, and the cache '{self.root}' of {_megabytes(self.most)} is full "
                    "of what is in use: give more with --cache-size or $UNSUPSEG_CACHE_SIZE."
                )
            _drop_oldest(free, excess)
            self._note(entry)
            _write_size(entry, size)

    def count(self, entry: Path, size: int) -> None:
        """Count an entry that was made here; where it exceeds the bound what is not in use goes."""
        with self._guard():
            excess, free = self._excess(entry, size)
            _drop_oldest(free, excess)
            _write_size(entry, size)

    def _excess(self, entry: Path, size: int) -> tuple[int, list[_Entry]]:
        """Return the bytes beyond the bound with an entry, and the others that may go; the caller holds the guard."""
        others = [other for other in self._entries() if other[2] != entry]
        excess = sum(bytes_ for _, bytes_, _ in others) + size - self.most
        in_use = self._in_use() if excess > 0 else set()
        return excess, [other for other in others if other[2] not in in_use]

    def _guard(self) -> FileLock:
        return FileLock(self.folder(_IN_USE) / "guard.lock")

    def _entries(self) -> list[_Entry]:
        """Return time of use, bytes and folder of every entry."""
        entries = []
        for path in self.root.glob(_ENTRIES):
            with suppress(OSError, ValueError):
                entries.append((path.stat().st_mtime, int(path.read_text(encoding="utf-8")), path.parent))
        return entries

    def _note(self, entry: Path) -> None:
        """Say that this process uses an entry; the caller holds the guard."""
        if self._mine is None:
            self._mine = FileLock(self.root / _IN_USE / f"{os.getpid()}-{secrets.token_hex(4)}.lock")
            self._mine.acquire()
        self._used.add(entry)
        lines = "".join(f"{used.relative_to(self.root)}\n" for used in sorted(self._used))
        Path(self._mine.lock_file).with_suffix(".txt").write_text(lines, encoding="utf-8")

    def _in_use(self) -> set[Path]:
        """Return the entries that living processes use; the caller holds the guard."""
        return {self.root / line for lines in self._lists() for line in lines}

    def _lists(self) -> Iterator[list[str]]:
        for path in (self.root / _IN_USE).glob("*-*.txt"):
            lock = path.with_suffix(".lock")
            if self._mine is None or Path(self._mine.lock_file) != lock:
                with suppress(Timeout), FileLock(lock, timeout=0):
                    path.unlink(missing_ok=True)  # its process is dead
                    lock.unlink(missing_ok=True)
                    continue
            with suppress(OSError):
                yield path.read_text(encoding="utf-8").splitlines()

    def __getstate__(self) -> dict[str, object]:
        """Return what another process makes the same cache of."""
        return {"root": self.root, "most": self.most, "_used": set(), "_mine": None}


def _drop_oldest(entries: list[_Entry], excess: int) -> None:
    for _, bytes_, entry in sorted(entries):
        if excess <= 0:
            return
        drop(entry)
        excess -= bytes_


def _write_size(entry: Path, size: int) -> None:
    entry.mkdir(parents=True, exist_ok=True)
    (entry / SIZE).write_text(str(size), encoding="utf-8")


def drop(entry: Path) -> None:
    """Remove the files of an entry but its manifest, so that it is still known what is to be fetched."""
    (entry / SIZE).unlink(missing_ok=True)
    for path in entry.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MANIFEST:
            path.unlink()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
