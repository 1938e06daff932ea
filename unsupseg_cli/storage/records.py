"""The records of a workspace in a bucket: an object for each published artifact, mirrored as manifests in the cache."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from unsupseg_cli.artifacts.cache import drop
from unsupseg_cli.artifacts.files import write_atomic, write_json
from unsupseg_cli.artifacts.manifest import (
    MANIFEST,
    Key,
    Name,
    NewerFormatError,
    parse_manifest,
    read_manifest,
)
from unsupseg_cli.artifacts.sources import stamp
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.storage.objects import Listed, Objects, Version
from unsupseg_cli.storage.transfer import TOGETHER

PUBLISHED = "published"
_STATE = ".records.json"
_FORMAT = 1


class Known(BaseModel):
    """A record as this machine knows it."""

    model_config = ConfigDict(frozen=True)

    etag: str
    id: str
    attempt: str
    problem: str = Field(default="", description="Why the manifest cannot be read.")


class Record(BaseModel):
    """What the object of a published artifact says: which attempt counts, and its manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = _FORMAT
    attempt: Name
    manifest: dict[str, Any]

    @property
    def folder(self) -> str:
        """The folder of its files below that of its kind; one that is nowhere where the names lead elsewhere."""
        try:
            return f"{_Place(kind='-', key='0', id=self.manifest.get('id', '')).id}/{self.attempt}"
        except ValueError:
            return "-/-"

    def to_bytes(self) -> bytes:
        """Return the content of the object."""
        return (self.model_dump_json(indent=1) + "\n").encode()


class _Place(BaseModel):
    """Kind, key and id of a record: names of folders that lead nowhere else."""

    kind: Name
    key: Key
    id: Name


class Records:
    """The records below an address, and their mirror in a folder of the cache: ``<kind>/<id>/manifest.json``."""

    def __init__(self, objects: Objects, root: Path) -> None:
        self._objects, self._root = objects, root
        self._seen: list[int] = []
        self._known: dict[str, Known] = {}

    def known(self) -> dict[str, Known]:
        """Return what this machine knows of the records, by ``<kind>/<key>``."""
        with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            seen = stamp(self._root / _STATE)
            if seen != self._seen:
                content = json.loads((self._root / _STATE).read_bytes())
                self._known = {name: Known.model_validate(value) for name, value in content.items()}
                self._seen = seen
            return self._known
        return {}

    def read(self, kind: str, key: str) -> tuple[Record, Version] | None:
        """Return a record with its version, None where there is none or it cannot be read."""
        stored = self._objects.read(path_of(kind, key))
        if stored is None:
            return None
        try:
            return _parse(stored.data, f"{self._objects.address}/{path_of(kind, key)}"), stored.version
        except ValueError:
            return Record(attempt="unknown", manifest={}), stored.version

    def refresh(self) -> None:
        """Bring the mirror up to date: each record is read once, for it hardly ever changes."""
        listed = {_name(item): item for item in self._objects.list(PUBLISHED)}
        if {name: item.etag for name, item in listed.items()} == {
            n: k.etag for n, k in self._mirrored().items()
        }:
            return
        with FileLock(self._root / f"{_STATE}.lock"):
            known = self._mirrored()
            for name in known.keys() - listed.keys():
                self._forget(name)
                del known[name]
            new = [
                item for name, item in listed.items() if name not in known or known[name].etag != item.etag
            ]
            with ThreadPoolExecutor(TOGETHER) as threads:
                for item, learned in zip(new, threads.map(self._learn, new), strict=True):
                    name = _name(item)
                    if learned is not None and learned.problem:
                        self._forget(name)
                    if learned is not None:
                        known[name] = learned
            state = {name: known[name].model_dump() for name in sorted(known)}
            write_json(self._root / _STATE, state)

    def _mirrored(self) -> dict[str, Known]:
        """Return the known records whose manifests are in the mirror still."""

        def is_there(name: str, known: Known) -> bool:
            return bool(known.problem) or (self._root / name.partition("/")[0] / known.id / MANIFEST).exists()

        return {name: known for name, known in self.known().items() if is_there(name, known)}

    def _learn(self, item: Listed) -> Known | None:
        """Read a record and write its manifest into the mirror; None where it was removed by now."""
        stored = self._objects.read(item.path)
        if stored is None:
            return None
        kind, _, key = _name(item).partition("/")
        try:
            record = _parse(stored.data, f"{self._objects.address}/{item.path}")
            place = _Place(kind=kind, key=key, id=str(record.manifest.get("id")))
            folder = self._root / kind / place.id
            manifest = parse_manifest(record.manifest, f"{self._objects.address}/{item.path}")
            if (manifest.kind, manifest.key) != (kind, key):
                raise UnsupsegError(
                    f"The record '{self._objects.address}/{item.path}' is of another artifact."
                )
        except (UnsupsegError, ValueError) as error:
            first = str(error).splitlines()[0]
            problem = f"The record '{self._objects.address}/{item.path}' cannot be read ({first})."
            text = str(error) if isinstance(error, UnsupsegError) else problem
            return Known(etag=item.etag, id="", attempt="", problem=text)
        with suppress(UnsupsegError):
            if read_manifest(folder) == manifest:
                return Known(etag=item.etag, id=manifest.id, attempt=record.attempt)
            drop(folder)  # it was made again: its files are others
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        return Known(etag=item.etag, id=manifest.id, attempt=record.attempt)

    def _forget(self, name: str) -> None:
        kind, _, key = name.partition("/")
        if kind.startswith(".") or not key.isalnum():
            return  # of nobody who writes here: it has no mirror
        for folder in (self._root / kind).glob(f"*-{key[:8]}"):
            shutil.rmtree(folder, ignore_errors=True)


def _parse(data: bytes, path: str) -> Record:
    """Return a record; raises NewerFormatError for one of a newer version, ValueError for what is none."""
    raw = json.loads(data)
    version = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > _FORMAT:
        raise NewerFormatError(
            f"'{path}' has format {version}, this tool reads up to {_FORMAT}; update unsupseg."
        )
    return Record.model_validate(raw)


def path_of(kind: str, key: str) -> str:
    """Return the object of a record."""
    return f"{PUBLISHED}/{kind}/{key}.json"


def _name(item: Listed) -> str:
    return item.path.removeprefix(f"{PUBLISHED}/").removesuffix(".json")
