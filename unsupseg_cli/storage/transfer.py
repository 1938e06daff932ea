"""The files of an artifact on their way between a bucket and the cache, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unsupseg_cli.artifacts.artifact import Artifact
from unsupseg_cli.artifacts.manifest import Output
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.words import counted
from unsupseg_cli.storage.objects import Objects

TOGETHER = 8
"""Requests that one process makes at a time: more bring little on one line, and are throttled sooner."""
_TOLD = 100 * 10**6  # bytes from which a transfer takes long enough to be told


def size_of(path: Path) -> int:
    """Return the bytes of a file, -1 where it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def lacking(artifact: Artifact) -> dict[str, Output]:
    """Return the files of an artifact that are not in its folder with their size."""
    outputs = artifact.manifest.outputs.items()
    return {name: output for name, output in outputs if size_of(artifact.folder / name) != output.bytes}


def fetch_files(artifact: Artifact, files: dict[str, Output], prefix: str, objects: Objects) -> None:
    """Fetch files of an artifact into its folder; raises UnsupsegError where one is missing or is another."""
    size = sum(output.bytes for output in files.values())
    if size > _TOLD:
        objects.tell(
            f"fetching '{artifact.id}' from '{objects.address}': {counted(len(files), 'file')}, {size / 1e6:,.0f} MB"
        )

    def fetch(name: str) -> None:
        output = files[name]
        if not objects.fetch(f"{prefix}/{name}", artifact.folder / name, output.bytes, output.sha256):
            raise UnsupsegError(
                f"The file '{name}' of '{artifact.id}' in '{objects.address}' is missing or was changed: `unsupseg "
                "verify` names what is damaged, and the call that made it makes it again."
            )

    _in_parallel(fetch, files)


def put_files(folder: Path, names: Collection[str], prefix: str, objects: Objects, *, once: bool) -> None:
    """Put files of a folder below a prefix.

    Args:
        folder: they lie in.
        names: relative to it.
        prefix: they are put below.
        objects: of the workspace.
        once: other processes put files there too: one is put only where there is none.

    Raises:
        UnsupsegError: another process put another file.
    """
    size = sum(size_of(folder / name) for name in names)
    if size > _TOLD:
        objects.tell(f"putting {counted(len(names), 'file')}, {size / 1e6:,.0f} MB, into '{objects.address}'")

    def put(name: str) -> None:
        path, file = f"{prefix}/{name}", folder / name
        if not once:
            objects.write(path, file)
        elif objects.create(path, file) is None:
            raise UnsupsegError(
                f"'{path}' in '{objects.address}' was made by another machine and is another file there: use the same "
                "versions of unsupseg and its packages on all; `unsupseg gc --shared --yes` removes what was begun."
            )

    _in_parallel(put, names)


def _in_parallel(work: Callable[[str], None], names: Iterable[str]) -> None:
    """Call a function for each name, some at a time; the first error is raised."""
    with ThreadPoolExecutor(TOGETHER) as threads:
        for _ in threads.map(work, names):
            pass
