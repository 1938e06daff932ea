"""Small things done safely on a file system: atomic text, folder sync, free space, locks."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unsupseg_cli.core.errors import StorageError, UnsupsegError, reason_of
from unsupseg_cli.core.progress import duration


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield another name to write to, which becomes ``path`` at the end: a reader never sees a part of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)  # mkstemp's 0600 would hide it from a group
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def copy_files(source: Path, target: Path) -> None:
    """Copy the files below a folder to another one, where others stay; each is there whole or as it was before."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place) as partial:
                shutil.copyfile(path, partial)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new content, never a part."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def sync_file(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(paths: Iterable[Path]) -> None:
    """Flush files, and the entries of folders, to the disk; symbolic links are left out."""
    for path in paths:
        if not path.is_symlink():
            sync_file(path)


def refuse_link(path: Path) -> None:
    """Raise UnsupsegError where a part of a workspace is a symbolic link: what is written there would lie elsewhere."""
    if path.is_symlink():
        raise UnsupsegError(
            f"'{path}' is a symbolic link, and nothing inside a workspace may lead out of it: remove the link; to keep "
            "artifacts elsewhere, put the whole workspace there (--workspace)."
        )


def existing_folder(path: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    folder = path.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder


def free_bytes(folder: Path) -> int:
    """Return the free space where a folder is or will be."""
    return shutil.disk_usage(existing_folder(folder)).free


def require_space(folder: Path, needed: int, subject: str, less: str = "") -> None:
    """Raise StorageError unless so many bytes (and 1 % more) are free where it lies; ``less`` says what needs fewer."""
    free, needed = shutil.disk_usage(folder).free, math.ceil(needed * 1.01)
    if needed > free:
        ways = ", ".join(("free some space", "choose another --workspace", *([less] if less else [])))
        raise StorageError(
            f"{subject} needs {math.ceil(needed / 1e5) / 10:,.1f} MB but '{folder}' has "
            f"{math.floor(free / 1e5) / 10:,.1f} MB free; {ways}."
        )


def size_on_disk(folder: Path) -> int:
    """Return the bytes of the files below a folder; one that another process takes away meanwhile does not count."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() else 0
    return size


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LOCKED = {errno.EROFS, errno.EACCES, errno.EPERM}
# What libraries that write by themselves (torch, numpy, safetensors, HDF5) say when the disk takes no more.
_FULL_TEXTS = (
    *map(os.strerror, sorted(_FULL)),
    "failed writing file",
    "unexpected pos",
    "iostream error",
    "problem writing",
    "requested and ",  # "4096 requested and 512 written"
)


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn the failure of a disk into a sentence that says what happened to it and that nothing is lost.

    Raises:
        StorageError: the disk of ``root`` is full, is read-only, or is no longer there. Other errors pass.
    """
    try:
        yield
    except UnsupsegError:
        raise
    except Exception as error:
        reason = _disk_reason(error, root)
        if reason is None:
            raise
        raise StorageError(f"{reason}; then the same command goes on where it stopped ({error}).") from error


def _disk_reason(error: Exception, root: Path) -> str | None:
    number = error.errno if isinstance(error, OSError) else None
    file = str(error.filename or "") if isinstance(error, OSError) else ""
    if number in _FULL or any(text in str(error) for text in _FULL_TEXTS):
        return f"The disk of the workspace '{root}' is full, or a file may not grow further: free some space"
    if not root.exists() or (number == errno.ENOENT and file.startswith(str(root))):
        return _gone(root)
    if number in _LOCKED and file.startswith(str(root)):
        return f"The workspace '{root}' cannot be written any more: make it writable"
    return None


def _gone(root: Path) -> str:
    return f"The workspace '{root}', or a part of it, was removed while it was in use: bring it back"


@contextmanager
def exclusive(
    path: Path, subject: str, wait: float, tell: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a lock file of a workspace; it is released when the process ends, however it ends.

    Where another process holds it, ``tell`` is told which one before the wait.

    Raises:
        UnsupsegError: another process held it for more than ``wait`` seconds; the message says which. Or the
            workspace was removed, whatever the work that holds the lock makes of that.
    """
    lock = FileLock(path)
    holder = path.with_suffix(".holder")
    for file in (path, holder):
        refuse_link(file)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if tell and wait > 0:
                tell(
                    f"{subject} is being written by {_writer(holder)}: waiting for it, at most {duration(wait)}"
                )
            lock.acquire(timeout=wait)
    except Timeout:
        raise UnsupsegError(
            f"{subject} is being written by {_writer(holder)}; wait for it, or stop that process and call again."
        ) from None
    except OSError as error:
        raise StorageError(
            f"The lock '{path}' cannot be made ({reason_of(error)}); the workspace must be a folder that you "
            "may write to."
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    except UnsupsegError as error:
        if path.exists():
            raise
        gone = _gone(path.parents[1])
        raise StorageError(f"{gone}; then the same command goes on where it stopped ({error}).") from error
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _writer(holder: Path) -> str:
    """Return who holds a lock, as far as it says so."""
    try:
        return holder.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
