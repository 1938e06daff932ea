"""The workspace: a folder of artifacts, each published by one atomic rename."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unsupseg_cli.artifacts.canonical import digest_file, digest_json
from unsupseg_cli.artifacts.environment import describe_environment, peak_memory_bytes
from unsupseg_cli.artifacts.files import exclusive, holder_of, sync_folder, write_atomic, write_json
from unsupseg_cli.artifacts.manifest import (
    MANIFEST,
    DataSource,
    Input,
    Manifest,
    Output,
    read_manifest,
)
from unsupseg_cli.core.errors import UnsupsegError, UsageError, did_you_mean

KINDS = (
    "features",
    "graph",
    "regions",
    "pseudolabels",
    "model",
    "predictions",
    "evaluation",
    "backbone",
)
CURRENT = "current.json"
_PARTIAL = ".partial"
_LOCKS = ".locks"
_NOT_RESULTS = {".log", ".jsonl", ".png", ".jpg", ".html"}


@dataclass(frozen=True)
class Artifact:
    """A published artifact: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """The name that commands take: ``<slug>-<first 8 digits of the key>``."""
        return self.manifest.id

    def as_input(self, role: str) -> Input:
        """Describe this artifact as the input of another one."""
        m = self.manifest
        return Input(role=role, kind=m.kind, id=m.id, key=m.key, digest=m.digest)

    def input(self, role: str) -> Input | None:
        """Return the input this artifact used in a role, if any."""
        return next((item for item in self.manifest.inputs if item.role == role), None)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what an artifact contains: its key is the digest of this."""

    kind: str
    stage: str
    stage_version: int
    slug: str
    config: dict[str, Any]
    inputs: list[Input] = field(default_factory=list)
    data: DataSource | None = None
    weights: str = ""
    execution: dict[str, Any] = field(default_factory=dict)
    used_labels: bool = False
    label_fingerprint: str = ""

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of what decides the result."""
        return digest_json(
            {
                "stage": self.stage,
                "version": self.stage_version,
                "config": self.config,
                "inputs": [[item.role, item.key] for item in self.inputs],
                "images": self.data.fingerprint if self.data else "",
                "labels": self.label_fingerprint,
                "weights": self.weights,
            }
        )

    @property
    def id(self) -> str:
        """The artifact's name."""
        return f"{self.slug}-{self.key[:8]}"


class Draft:
    """An artifact while it is being written, under a temporary name that survives a kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warnings: list[str] = []
        self.deterministic = True
        (folder / "done").mkdir(parents=True, exist_ok=True)

    def is_done(self, part: str) -> bool:
        """Tell whether a part was finished by this or an earlier, interrupted call."""
        return (self.folder / "done" / f"{part}.json").exists()

    def finish(self, part: str, note: Any = None) -> None:
        """Mark a part as finished; its files must be on disk already."""
        write_json(self.folder / "done" / f"{part}.json", note)

    def note(self, part: str) -> Any:
        """Return what `finish` was told about a part."""
        return json.loads((self.folder / "done" / f"{part}.json").read_text(encoding="utf-8"))


class Workspace:
    """A folder of artifacts: ``<root>/<kind>/<id>/``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # Reading ---------------------------------------------------------------------------------------------

    def artifacts(self, kind: str | None = None) -> Iterator[Artifact]:
        """Yield the published artifacts, oldest first within a kind; damaged ones are left out."""
        for one in KINDS if kind is None else (kind,):
            found = []
            for folder in sorted((self.root / one).glob("*")):
                if folder.name.startswith(".") or not (folder / MANIFEST).exists():
                    continue
                try:
                    found.append(Artifact(folder, read_manifest(folder)))
                except UnsupsegError:
                    continue
            yield from sorted(found, key=lambda item: (item.manifest.started, item.id))

    def damaged(self) -> list[str]:
        """Return why each published folder that is no longer an artifact cannot be read."""
        problems = []
        for folder in (path for kind in KINDS for path in sorted((self.root / kind).glob("[!.]*"))):
            try:
                read_manifest(folder)
            except UnsupsegError as error:
                problems.append(str(error))
        return problems

    def find_key(self, kind: str, key: str) -> Artifact | None:
        """Return the artifact of a kind with this full key, if it was published."""
        for folder in (self.root / kind).glob(f"*-{key[:8]}"):
            artifact = Artifact(folder, read_manifest(folder))
            if artifact.manifest.key == key:
                return artifact
        return None

    def get(self, reference: str, kind: str | None = None) -> Artifact:
        """Return the artifact named by an id, the beginning of one, or a path.

        Raises:
            UsageError: nothing, or more than one artifact, is meant; or it is of another kind.
        """
        path = Path(reference)
        if path.is_dir() and (path / MANIFEST).exists():
            found = [Artifact(path, read_manifest(path))]
        else:
            every = list(self.artifacts())
            found = [item for item in every if item.id == reference] or [
                item for item in every if item.id.startswith(reference) or item.id.endswith(f"-{reference}")
            ]
        if kind is not None and any(item.manifest.kind == kind for item in found):
            found = [item for item in found if item.manifest.kind == kind]
        if not found:
            known = [item.id for item in self.artifacts(kind)]
            raise UsageError(
                f"No {kind or 'artifact'} '{reference}' in the workspace '{self.root}'"
                + did_you_mean(reference, known)
            )
        if len(found) > 1:
            raise UsageError(
                f"'{reference}' means more than one artifact: {', '.join(item.id for item in found)}; "
                "give the whole id."
            )
        if kind is not None and found[0].manifest.kind != kind:
            raise UsageError(
                f"'{reference}' is of kind '{found[0].manifest.kind}', but '{kind}' was expected here."
            )
        return found[0]

    def current(self, kind: str, split: str | None = None) -> Artifact:
        """Return the artifact of a kind that was last written or reused (for a split, where one is given).

        Raises:
            UsageError: there is none yet; the message names the command that makes one.
        """
        splits = self._read_current().get(kind, {})
        name = splits.get(split) if split is not None else splits.get("*last*")
        if name is None:
            of = f" of split '{split}'" if split else ""
            raise UsageError(
                f"No {kind}{of} in the workspace '{self.root}' yet; run `unsupseg {_MAKERS[kind]}` first, or "
                f"name one with --{kind}."
            )
        return self.get(name, kind)

    def children(self, artifact: Artifact) -> list[Artifact]:
        """Return the artifacts that were made from this one."""
        key = artifact.manifest.key
        return [item for item in self.artifacts() if any(i.key == key for i in item.manifest.inputs)]

    # Writing ---------------------------------------------------------------------------------------------

    def produce(
        self,
        recipe: Recipe,
        work: Callable[[Draft], dict[str, Any]],
        *,
        force: bool = False,
        wait: float = 3600.0,
    ) -> tuple[Artifact, bool]:
        """Return the artifact of a recipe, made by ``work`` unless it is there; and whether it was reused.

        ``work`` fills the draft's folder and returns the summary for the manifest. When the process is
        killed the draft stays, and the next call with the same key goes on with it. With ``force`` the old
        artifact stays until the new one is complete.

        Raises:
            UnsupsegError: the workspace cannot be written, or another process keeps the key for ``wait``
                seconds.
        """
        lock = self.root / _LOCKS / f"{recipe.kind}-{recipe.key[:16]}.lock"
        if not force and (found := self.find_key(recipe.kind, recipe.key)):
            if holder_of(lock).exists():
                _is_free(lock)  # its writer was killed after publishing: this takes the lock and lets it go
            self._set_current(found)
            return found, True
        self._make_folders(recipe.kind)
        with exclusive(lock, f"The artifact '{recipe.id}'", wait):
            if not force and (found := self.find_key(recipe.kind, recipe.key)):
                self._set_current(found)
                return found, True
            folder = self.root / recipe.kind / f"{_PARTIAL}-{recipe.key[:16]}"
            draft, clock, started = Draft(folder), time.monotonic(), datetime.now(UTC)
            summary = work(draft)
            artifact = self._publish(recipe, draft, summary, started, time.monotonic() - clock)
        self._set_current(artifact)
        return artifact, False

    def _publish(
        self, recipe: Recipe, draft: Draft, summary: dict[str, Any], started: datetime, seconds: float
    ) -> Artifact:
        shutil.rmtree(draft.folder / "done", ignore_errors=True)
        shutil.rmtree(draft.folder / "checkpoint", ignore_errors=True)
        for path in sorted(draft.folder.rglob(".*"), reverse=True):  # what killed calls left half-written
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        outputs = {}
        for path in sorted(draft.folder.rglob("*")):
            name = path.relative_to(draft.folder).as_posix()
            if path.is_file() and name != MANIFEST:
                path.chmod(0o644)  # some writers make files that only their owner may read
                result = path.suffix not in _NOT_RESULTS or name.startswith("ids/")
                outputs[name] = Output(bytes=path.stat().st_size, sha256=digest_file(path), result=result)
        manifest = Manifest(
            kind=recipe.kind,
            id=recipe.id,
            stage=recipe.stage,
            stage_version=recipe.stage_version,
            key=recipe.key,
            config=recipe.config,
            execution=recipe.execution,
            inputs=recipe.inputs,
            data=recipe.data,
            environment=describe_environment(),
            started=started.isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            peak_memory_bytes=peak_memory_bytes(),
            outputs=outputs,
            digest=Manifest.digest_of(outputs),
            summary=summary,
            warnings=draft.warnings,
            deterministic=draft.deterministic,
            used_labels=recipe.used_labels,
        )
        write_atomic(draft.folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        sync_folder(draft.folder)
        target = self.root / recipe.kind / recipe.id
        if target.exists():
            retired = target.with_name(f"{_PARTIAL}-retired-{os.getpid()}-{recipe.key[:8]}")
            target.rename(retired)
            draft.folder.rename(target)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            draft.folder.rename(target)
        return Artifact(target, manifest)

    def _make_folders(self, kind: str) -> None:
        try:
            (self.root / kind).mkdir(parents=True, exist_ok=True)
            (self.root / _LOCKS).mkdir(exist_ok=True)
        except OSError as error:
            raise UnsupsegError(
                f"The workspace '{self.root}' cannot be written ({error.strerror}); give another folder with "
                "--workspace or $UNSUPSEG_WORKSPACE."
            ) from None

    def _read_current(self) -> dict[str, dict[str, str]]:
        path = self.root / CURRENT
        if not path.exists():
            return {}
        try:
            value: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
            return value
        except (OSError, ValueError):
            return {}  # a convenience only: every input can be named

    def _set_current(self, artifact: Artifact) -> None:
        if not os.access(self.root, os.W_OK):
            return  # reusing from a read-only workspace is fine
        (self.root / _LOCKS).mkdir(exist_ok=True)
        with exclusive(self.root / _LOCKS / "current.lock", f"'{CURRENT}'", wait=60):
            current = self._read_current()
            splits = current.setdefault(artifact.manifest.kind, {})
            splits["*last*"] = artifact.id
            if artifact.manifest.data:
                splits[artifact.manifest.data.split] = artifact.id
            write_json(self.root / CURRENT, current)

    # Care ------------------------------------------------------------------------------------------------

    def verify(self, artifact: Artifact) -> list[str]:
        """Return what is wrong with an artifact: files missing or changed, inputs that are other now."""
        problems = []
        for name, output in artifact.manifest.outputs.items():
            path = artifact.path / name
            if not path.exists():
                problems.append(f"{artifact.id}: the file '{name}' is missing")
            elif path.stat().st_size != output.bytes or digest_file(path) != output.sha256:
                problems.append(f"{artifact.id}: the file '{name}' was changed after it was written")
        for item in artifact.manifest.inputs:
            try:
                now = self.find_key(item.kind, item.key)
            except UnsupsegError as error:
                problems.append(str(error))
                continue
            if now is not None and now.manifest.digest != item.digest:
                problems.append(f"{artifact.id}: its input '{item.id}' has other content now: run it again")
        return problems

    def leftovers(self) -> list[Path]:
        """Return the drafts of interrupted calls, which nobody is writing now."""
        found = []
        for folder in self.root.glob(f"*/{_PARTIAL}-*"):
            key = folder.name.removeprefix(f"{_PARTIAL}-")
            lock = self.root / _LOCKS / f"{folder.parent.name}-{key}.lock"
            if not holder_of(lock).exists() or _is_free(lock):
                found.append(folder)
        return sorted(found)


def _is_free(lock: Path) -> bool:
    try:
        with exclusive(lock, "", wait=0):
            return True
    except UnsupsegError:
        return False


_MAKERS = {
    "features": "extract",
    "graph": "graph",
    "regions": "extract --regions",
    "pseudolabels": "pseudolabel",
    "model": "train",
    "predictions": "predict",
    "evaluation": "eval",
    "backbone": "pretrain",
}
