"""An artifact while it is being written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

from unsupseg_cli.artifacts.files import write_json

SHARED = "shared"
"""The part that says that several processes write a draft."""


class Draft:
    """An artifact while it is being written, under a temporary name that survives a kill.

    What has a hidden name, and the folders ``done`` and ``checkpoint``, are scratch: they stay as long as the
    draft does and are not published.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warnings: list[str] = []
        self.deterministic = True
        (folder / "done").mkdir(parents=True, exist_ok=True)

    @staticmethod
    def is_shared(folder: Path) -> bool:
        """Tell whether several processes write the draft in a folder (`Workspace.produce_shard`)."""
        return (folder / "done" / f"{SHARED}.json").exists()

    def is_done(self, part: str) -> bool:
        """Tell whether a part was finished by this or an earlier, interrupted call."""
        return (self.folder / "done" / f"{part}.json").exists()

    def finish(self, part: str, note: Any = None) -> None:
        """Mark a part as finished; its files must be on disk already."""
        write_json(self.folder / "done" / f"{part}.json", note)

    def note(self, part: str) -> Any:
        """Return what `finish` was told about a part."""
        return json.loads((self.folder / "done" / f"{part}.json").read_text(encoding="utf-8"))

    def clear(self) -> None:
        """Remove everything: the work begins again."""
        shutil.rmtree(self.folder)
        (self.folder / "done").mkdir(parents=True)


class SharedWork(Protocol):
    """Work that several processes do at once, each its own parts of one draft."""

    def write(self) -> None:
        """Make this process's parts that are not finished yet."""

    def missing(self) -> int:
        """Return how many parts, of all processes, are not finished yet."""

    def close(self) -> dict[str, Any]:
        """Join the parts when none is missing; return the summary for the manifest."""
