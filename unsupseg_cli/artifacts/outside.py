"""Where nothing but artifacts may be written: into an artifact, and between the artifacts of a kind."""

from __future__ import annotations

import re
from pathlib import Path

from unsupseg_cli.artifacts.current import CURRENT
from unsupseg_cli.artifacts.manifest import MANIFEST, read_manifest
from unsupseg_cli.core.errors import UnsupsegError, UsageError

_NAME = re.compile(r"\.partial-.*|.*-[0-9a-f]{8}")


def holds_artifacts(folder: Path) -> bool:
    """Tell whether a folder of a workspace is that of a kind: artifacts, damaged ones or drafts lie in it."""
    return any(
        path.is_dir() and (_NAME.fullmatch(path.name) or (path / MANIFEST).exists())
        for path in folder.iterdir()
    )


def require_outside(path: Path, option: str = "--out") -> None:
    """Raise UsageError where a file or folder of results would lie in an artifact, or among artifacts."""
    place = path.resolve()
    if (place / CURRENT).is_file():
        raise UsageError(f"'{path}' is a workspace: name a folder for the results with {option}.")
    for folder in (place, *place.parents):
        if _is_artifact(folder):
            raise UsageError(
                f"'{path}' is, or lies in, the artifact '{folder.name}', which only its own command writes: name "
                f"another place with {option}."
            )
        if (folder.parent / CURRENT).is_file() and folder.is_dir() and holds_artifacts(folder):
            raise UsageError(
                f"'{path}' lies among the artifacts of the workspace '{folder.parent}': name another place with "
                f"{option}."
            )


def _is_artifact(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except UnsupsegError:
        return False
    return True
