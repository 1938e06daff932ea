"""An artifact while it is being written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from unsupseg_cli.artifacts.canonical import digest_file
from unsupseg_cli.artifacts.files import sync_file, write_json
from unsupseg_cli.artifacts.manifest import Output

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
        self._whole: set[str] = set()  # parts whose files were written or looked over by this process
        (folder / "done").mkdir(parents=True, exist_ok=True)

    @staticmethod
    def is_shared(folder: Path) -> bool:
        """Tell whether several processes write the draft in a folder (`Workspace.produce_shard`)."""
        return (folder / "done" / f"{SHARED}.json").exists()

    def is_noted(self, part: str) -> bool:
        """Tell whether a part was finished by this or another call; its files are not looked at."""
        return self._read(part) is not None

    def is_done(self, part: str) -> bool:
        """Tell whether a part was finished by this or an earlier, interrupted call, and its files are as they were."""
        if part not in self._whole and (content := self._read(part)) is not None:
            files = content["files"].items()
            if all(_digest(self.folder / name) == digest for name, digest in files):
                self._whole.add(part)
        return part in self._whole

    def finish(self, part: str, note: Any = None, files: Iterable[Path] = ()) -> None:
        """Mark a part as finished: its files go to the disk first, and the note says what is in them."""
        digests = {}
        for file in files:
            sync_file(file)
            digests[file.relative_to(self.folder).as_posix()] = digest_file(file)
        write_json(self.folder / "done" / f"{part}.json", {"note": note, "files": digests})
        self._whole.add(part)

    def note(self, part: str) -> Any:
        """Return what `finish` was told about a part."""
        content = self._read(part)
        return None if content is None else content["note"]

    def files(self, part: str) -> list[Path]:
        """Return the files of a part that was finished, which may lie on another machine, see `bring`."""
        content = self._read(part)
        return [self.folder / name for name in content["files"]] if content else []

    def refresh(self) -> None:
        """Take notice of what other machines finished."""

    def bring(self, files: Iterable[Path]) -> None:
        """See to it that files of finished parts are in the folder, whichever machine made them."""

    def take_over(self) -> None:
        """Bring the files of every part, which may be changed from now on."""

    def elsewhere(self) -> dict[str, Output]:
        """Return the files to publish that other machines made and that are not in the folder."""
        return {}

    def clear(self) -> None:
        """Remove everything: the work begins again."""
        shutil.rmtree(self.folder)
        (self.folder / "done").mkdir(parents=True)
        self._whole.clear()

    def _read(self, part: str) -> dict[str, Any] | None:
        """Return the note of a part with the digests of its files; None without one that can be read."""
        try:
            content = json.loads((self.folder / "done" / f"{part}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) and content.keys() == {"note", "files"} else None


def _digest(path: Path) -> str:
    try:
        return digest_file(path)
    except OSError:
        return ""


class SharedWork(Protocol):
    """Work that several processes do at once, each its own parts of one draft."""

    def write(self) -> None:
        """Make this process's parts that are not finished yet."""

    def missing(self) -> int:
        """Return how many parts, of all processes, are not finished yet."""

    def close(self) -> dict[str, Any]:
        """Join the parts when none is missing; return the summary for the manifest."""
