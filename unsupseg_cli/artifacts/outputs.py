"""The files of an artifact that its manifest lists: which they are, and whether they are as they were."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unsupseg_cli.artifacts.canonical import digest_file
from unsupseg_cli.artifacts.manifest import Output, is_result, is_scratch
from unsupseg_cli.core.threads import usable_cores

_UNFINISHED = {".partial", ".tmp"}  # what zarr and torch call a file until it is whole
_HASHING = 8  # files at a time, at most


def is_as_listed(path: Path, output: Output) -> bool:
    """Tell whether a file has the size and the content that a manifest lists."""
    return size_of(path) == output.bytes and digest_file(path) == output.sha256


def lasting(folder: Path) -> list[Path]:
    """Return the files and folders of a draft that are no scratch, nor what a killed call left of a file."""
    paths = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        scratch = name.partition("/")[0] in ("done", "checkpoint") or is_scratch(name)
        if not scratch and path.suffix not in _UNFINISHED:
            paths.append(path)
    return paths


def outputs_of(folder: Path) -> dict[str, Output]:
    """Describe the files of a draft that are published."""
    paths = {path.relative_to(folder).as_posix(): path for path in lasting(folder) if path.is_file()}
    with ThreadPoolExecutor(
        min(_HASHING, usable_cores())
    ) as threads:  # hashing leaves the other threads free to run
        outputs = threads.map(lambda path: output_of(folder, path), paths.values())
        return dict(zip(paths, outputs, strict=True))


def output_of(folder: Path, path: Path) -> Output:
    """Describe a file of a draft, which others may read from now on."""
    path.chmod(0o644)  # some writers make files that only their owner may read
    name = path.relative_to(folder).as_posix()
    return Output(bytes=path.stat().st_size, sha256=digest_file(path), result=is_result(name))


def size_of(path: Path) -> int:
    """Return the bytes of a file; -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
