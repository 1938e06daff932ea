"""What commands look for among artifacts, kept beside them so that not every manifest is read by every command.

The index is a convenience: it may be missing, and an entry counts only while its manifest is the file it was made from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from unsupseg_cli.artifacts.files import write_json
from unsupseg_cli.artifacts.manifest import MANIFEST, Manifest, read_manifest
from unsupseg_cli.core.errors import UnsupsegError

INDEX = "index.json"
_FORMAT = 1
_WORTH = 50  # manifests read by one command: from there on it writes what it learned


class Entry(BaseModel):
    """An artifact as the index knows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    kind: str
    key: str
    started: str
    seconds: float
    bytes: int
    used_labels: bool
    split: str | None
    images: int
    inputs: list[list[str]]
    """Role, kind, id and key of each input."""
    settings: dict[str, Any]
    """What `list` shows of the options, and what tells whether the method is installed."""


_SETTINGS = ("method", "method_version", "backbone", "classes")


def entry_of(manifest: Manifest) -> Entry:
    """Return the entry of an artifact."""
    data = manifest.data
    return Entry(
        id=manifest.id,
        kind=manifest.kind,
        key=manifest.key,
        started=manifest.started,
        seconds=manifest.seconds,
        bytes=sum(output.bytes for output in manifest.outputs.values()),
        used_labels=manifest.used_labels,
        split=data.split if data else None,
        images=data.count if data else 0,
        inputs=[[item.role, item.kind, item.id, item.key] for item in manifest.inputs],
        settings={name: manifest.config[name] for name in _SETTINGS if name in manifest.config},
    )


@dataclass
class _Known:
    stamp: list[int]
    entry: Entry | None  # None: the manifest cannot be read


class Index:
    """The entries of the artifacts in a workspace, read once and kept up to date."""

    def __init__(self, root: Path, *, keep: bool = True) -> None:
        self._path, self._root, self._keep = root / INDEX, root, keep
        self._known: dict[str, _Known] | None = None
        self._learned = 0

    def entries(self, kind: str) -> Iterator[tuple[Path, Entry]]:
        """Yield folder and entry of every folder of a kind with a manifest that can be read, hidden ones too."""
        known = self._load()
        for folder, stamp in _manifests(self._root / kind):
            name = f"{kind}/{folder.name}"
            if name not in known or known[name].stamp != stamp:
                known[name] = _Known(stamp, _read(folder))
                self._learned += 1
            if (entry := known[name].entry) is not None:
                yield folder, entry

    def unreadable(self, kind: str) -> list[Path]:
        """Return the folders of a kind whose manifest cannot be read."""
        list(self.entries(kind))  # looks at what is new
        folders = [folder for folder, _ in _manifests(self._root / kind) if not folder.name.startswith(".")]
        return [folder for folder in folders if self._load()[f"{kind}/{folder.name}"].entry is None]

    def save(self) -> None:
        """Write the index where that saves the next command some work."""
        if self._known is None or self._learned < _WORTH or not self._keep:
            return
        self._learned = 0
        entries = {
            name: [known.stamp, known.entry and known.entry.model_dump(mode="json")]
            for name, known in self._known.items()
            if (self._root / name).is_dir()
        }
        with suppress(OSError):  # a read-only workspace
            write_json(self._path, {"format": _FORMAT, "artifacts": entries})

    def _load(self) -> dict[str, _Known]:
        if self._known is None:
            self._known = {}
            with suppress(
                OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError
            ):
                content = json.loads(self._path.read_bytes())
                if content["format"] == _FORMAT:
                    self._known = {
                        name: _Known(stamp, None if entry is None else Entry.model_construct(**entry))
                        for name, (stamp, entry) in content["artifacts"].items()
                    }
        return self._known


def _manifests(folder: Path) -> Iterator[tuple[Path, list[int]]]:
    """Yield each folder below a folder, no links, that has a manifest, with the manifest's stamp."""
    try:
        with os.scandir(folder) as items:
            names = sorted(item.name for item in items if item.is_dir(follow_symlinks=False))
    except OSError:
        return
    for name in names:
        with suppress(OSError):
            status = (folder / name / MANIFEST).stat()
            yield folder / name, [status.st_size, status.st_mtime_ns, status.st_ino]


def _read(folder: Path) -> Entry | None:
    try:
        return entry_of(read_manifest(folder))
    except UnsupsegError:
        return None
