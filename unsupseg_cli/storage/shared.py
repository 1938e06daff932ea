"""The draft of an artifact that several machines write, each its own parts: finished parts lie in the bucket.

A file is put only where there is none of its name, and never changed: whoever made it first made the one that counts,
and a second maker takes it over. So no process, however late, can change what others noted or published.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.files import write_atomic
from unsupseg_cli.artifacts.manifest import Output, is_inside, is_result, is_scratch
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.storage.objects import Objects

SHARES = "shared"
"""Where notes and scratch of such drafts lie in a bucket."""
_ATTEMPT = "attempt.json"
_TAKEN_OVER = "taken-over"  # the part that says that this machine goes on alone


def attempt_of(objects: Objects, scratch: str) -> str:
    """Return the attempt that several machines make together; empty where none was begun."""
    stored = objects.read(f"{scratch}/{_ATTEMPT}")
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(stored.data)["attempt"]) if stored is not None else ""
    return "unknown"


def begin_attempt(objects: Objects, scratch: str) -> str:
    """Begin an attempt that several machines make together, unless another one just did; return it."""
    objects.create(f"{scratch}/{_ATTEMPT}", json.dumps({"attempt": secrets.token_hex(8)}).encode())
    return attempt_of(objects, scratch)


class SharedDraft(Draft):
    """A draft whose finished parts other machines see.

    Args:
        folder: of the draft on this machine.
        objects: of the workspace.
        attempt: where its files lie that are published.
        scratch: where the others lie, and the notes.
    """

    def __init__(self, folder: Path, objects: Objects, attempt: str, scratch: str) -> None:
        super().__init__(folder)
        self.attempt = attempt
        self._objects, self._scratch = objects, scratch
        self._notes: dict[str, dict[str, Any]] = {}  # of the parts in the bucket
        self.refresh()

    @property
    def taken_over(self) -> bool:
        """Whether the files are published from here, by this or an earlier call."""
        return self.is_noted(_TAKEN_OVER)

    def refresh(self) -> None:
        """Take notice of what other machines finished, and tell them what this one did in an earlier call."""
        known = {f"{self._scratch}/done/{part}.json" for part in self._notes}
        for item in self._objects.list(f"{self._scratch}/done"):
            if item.path in known or (stored := self._objects.read(item.path)) is None:
                continue
            self._take_note(item.path.rpartition("/")[2].removesuffix(".json"), stored.data)
        for path in sorted((self.folder / "done").glob("*.json")):
            content = self._read(path.stem) if path.stem not in self._notes else None
            if content and content["files"] and super().is_done(path.stem):
                self.finish(path.stem, content["note"], [self.folder / name for name in content["files"]])

    def is_done(self, part: str) -> bool:
        """Tell whether a part was finished, on whichever machine."""
        return (part in self._notes and not self.taken_over) or super().is_done(part)

    def finish(self, part: str, note: Any = None, files: Iterable[Path] = ()) -> None:
        """Mark a part as finished, and put its files into the bucket; a part without files is this machine's own."""
        files = list(files)
        for file in files:
            if self._objects.create(self._path(file), file) is None:
                self._fetch(file, None)  # another machine was first
        super().finish(part, note, files)
        if files:
            content = self._read(part)
            path = f"{self._scratch}/done/{part}.json"
            sizes = (
                {name: (self.folder / name).stat().st_size for name in content["files"]} if content else {}
            )
            self._objects.create(path, json.dumps({**(content or {}), "bytes": sizes}).encode())
            if (stored := self._objects.read(path)) is not None:
                self._take_note(part, stored.data)

    def bring(self, files: Iterable[Path]) -> None:
        """Fetch those files of finished parts that are not in the folder."""
        for file in files:
            if not file.exists():
                self._fetch(file, self._digests()[self._name(file)])

    def take_over(self) -> None:
        """Fetch the files of every part; they are published from here, as another attempt."""
        self.bring(self.folder / name for name in self._digests())
        super().finish(_TAKEN_OVER)

    def elsewhere(self) -> dict[str, Output]:
        """Return the files to publish that other machines made and that are not in the folder."""
        if self.taken_over:
            return {}
        return {
            name: Output(bytes=note["bytes"][name], sha256=digest, result=is_result(name))
            for note in self._notes.values()
            for name, digest in note["files"].items()
            if not is_scratch(name) and not (self.folder / name).exists()
        }

    def is_published(self, name: str) -> bool:
        """Tell whether a file to publish is where it belongs already."""
        return not self.taken_over and name in self._digests()

    def clear(self) -> None:
        """Remove everything on this machine; what lies in the bucket was made from images of the same content."""
        super().clear()
        self._notes.clear()
        self.refresh()

    def _digests(self) -> dict[str, str]:
        return {name: digest for note in self._notes.values() for name, digest in note["files"].items()}

    def _take_note(self, part: str, data: bytes) -> None:
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            content = json.loads(data)
            inside = all(is_inside(name) for name in (part, *content["files"]))
            if inside and content["files"].keys() == content["bytes"].keys():
                self._notes[part] = content
                local = {"note": content["note"], "files": content["files"]}
                write_atomic(self.folder / "done" / f"{part}.json", json.dumps(local, sort_keys=True))

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()

    def _path(self, file: Path) -> str:
        name = self._name(file)
        return f"{self._scratch}/{name}" if is_scratch(name) else f"{self.attempt}/{name}"

    def _fetch(self, file: Path, digest: str | None) -> None:
        path = self._path(file)
        found = self._objects.head(path)
        if found is not None and self._objects.fetch(path, file, found.size, digest):
            return
        raise UnsupsegError(
            f"The file '{path}' in '{self._objects.address}', which another machine made, is missing or was changed: "
            "`unsupseg gc --shared --yes` removes what was begun; then call again."
        )
