"""The workspace: a folder of artifacts, each published by one atomic rename."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unsupseg_cli.artifacts.arrays import HDF5, pack_hdf5
from unsupseg_cli.artifacts.artifact import Artifact as Artifact
from unsupseg_cli.artifacts.current import CURRENT, as_current, with_current
from unsupseg_cli.artifacts.draft import SHARED, Draft, SharedWork
from unsupseg_cli.artifacts.environment import describe_environment, peak_memory_bytes
from unsupseg_cli.artifacts.files import (
    disk_errors,
    exclusive,
    refuse_link,
    sync_file,
    sync_files,
    write_atomic,
    write_json,
)
from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.artifacts.index import Entry, Index
from unsupseg_cli.artifacts.manifest import (
    MANIFEST,
    Manifest,
    OlderFormatError,
    Output,
    read_manifest,
)
from unsupseg_cli.artifacts.outputs import is_as_listed, lasting, output_of, outputs_of, size_of
from unsupseg_cli.artifacts.outside import holds_artifacts
from unsupseg_cli.core.errors import StorageError, UnsupsegError, UsageError, did_you_mean, reason_of

_PARTIAL = ".partial"
_RETIRED = f"{_PARTIAL}-retired"
LOCKS = ".locks"
"""The folder of the lock files."""
_DAMAGED = ".damaged"
_SHOWN = 5  # ids that a message names
_MUCH = 4 * 2**30  # bytes that take more than a few seconds to read once more
MISSING, CHANGED = "is missing", "was changed after it was written"
"""What `verify` says of a file."""


@dataclass(frozen=True)
class Listed:
    """A published artifact as the index knows it."""

    folder: Path
    entry: Entry
    workspace: Workspace

    def open(self) -> Artifact:
        """Read its manifest; raises UnsupsegError where that is not possible any more."""
        return self.workspace.open(self.folder)


class Workspace:
    """A folder of artifacts: ``<root>/<kind>/<id>/``."""

    keeps_index = True
    """Whether this object may write the index; a dry run writes nothing."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.promised: dict[str, Artifact] = {}
        self._index: Index | None = None

    def __str__(self) -> str:
        return str(self.root)

    def exists(self) -> bool:
        """Tell whether something was written here."""
        return self.root.is_dir()

    def for_dry_run(self) -> Workspace:
        """Return this workspace as a dry run sees it: with what it ``promised`` by key, and without an index."""
        other = copy(self)
        other.keeps_index, other.promised, other._index = False, {}, None
        return other

    # Where files are -------------------------------------------------------------------------------------

    def open(self, folder: Path) -> Artifact:
        """Return the artifact in a folder of this workspace; raises UnsupsegError as `read_manifest` does."""
        return Artifact(folder, read_manifest(folder))

    @property
    def shared_folder(self) -> Path | None:
        """The folder that machines must share to work here together; None where they share a bucket."""
        return self.root

    def bring(self, artifact: Artifact) -> None:
        """See to it that the files of an artifact are in its folder."""

    def place(self, artifact: Artifact) -> Path | str:
        """Return what names an artifact from any folder."""
        return artifact.folder

    def refresh(self) -> None:
        """See to it that the folders hold the manifest of every artifact there is."""

    def refresh_now(self) -> None:
        """Take notice of what other machines published, even if that was done a moment ago."""

    # Reading ---------------------------------------------------------------------------------------------

    def artifacts(self, kind: str | None = None) -> Iterator[Artifact]:
        """Yield the published artifacts, oldest first within a kind; damaged ones are left out."""
        for listed in self.listed(kind):
            with suppress(UnsupsegError):
                yield listed.open()

    def listed(self, kind: str | None = None) -> list[Listed]:
        """Return what the index knows of the artifacts that `artifacts` yields, without reading their manifests."""
        self.refresh()
        if self._index is None:
            self._index = Index(self.root, keep=self.keeps_index)
        artifacts: list[Listed] = []
        for name in self.kinds() if kind is None else (kind,):
            of_kind = [
                Listed(folder, entry, self)
                for folder, entry in self._index.entries(name)
                if not folder.name.startswith(".") or self._is_stranded(folder)
            ]
            artifacts += sorted(of_kind, key=lambda listed: (listed.entry.started, listed.entry.id))
        self._index.save()
        return artifacts

    def unreadable(self, kind: str | None = None) -> list[Path | str]:
        """Return the places of artifacts that `artifacts` leaves out: their manifest cannot be read."""
        self.listed(kind)
        assert self._index is not None
        return [
            folder for name in self.kinds() if kind in (None, name) for folder in self._index.unreadable(name)
        ]

    def kinds(self) -> list[str]:
        """Return the kinds of artifacts that there are, or were begun: a folder each.

        Raises:
            UnsupsegError: one of them is a symbolic link.
        """
        self.refresh()
        folders = self.root.iterdir() if self.root.is_dir() else ()
        kinds = []
        for path in sorted(path for path in folders if path.is_dir() and not path.name.startswith(".")):
            if holds_artifacts(path):  # else it is of somebody's own
                refuse_link(path)
                kinds.append(path.name)
        return kinds

    def damaged(self) -> list[str]:
        """Return why each published folder that is no longer an artifact cannot be read."""
        problems = []
        for folder in (path for kind in self.kinds() for path in sorted((self.root / kind).glob("[!.]*"))):
            try:
                refuse_link(folder)
                read_manifest(folder)
            except UnsupsegError as error:
                problems.append(str(error))
        return problems

    def find_key(self, kind: str, key: str) -> Artifact | None:
        """Return the artifact of a kind with this full key, if it was published, or promised in a dry run.

        Raises:
            UnsupsegError: its manifest, or that of another with the same id, cannot be read.
        """
        return self.find_made(kind, key) or self.promised.get(key)

    def find_made(self, kind: str, key: str) -> Artifact | None:
        """Return what `find_key` does, without promises."""
        self.refresh()
        retired = self._retired(kind, key)
        for folder in (*(self.root / kind).glob(f"*-{key[:8]}"), *([retired] if retired.exists() else [])):
            if folder.is_symlink():
                continue
            artifact = self.open(folder)
            if artifact.manifest.key == key:
                return artifact
        return None

    def get(self, reference: str | Path, kind: str | None = None) -> Artifact:
        """Return the artifact named by an id, the beginning of one, or a path.

        Raises:
            UsageError: nothing, or more than one artifact, is meant; or it is of another kind.
        """
        if not isinstance(reference, str | Path):
            raise UsageError(f"An artifact is named by its id or path, not by a {type(reference).__name__}.")
        reference = str(reference)
        if not reference.strip():
            raise UsageError(
                "The name of an artifact is empty, perhaps a variable of the shell that is not set."
            )
        path = Path(reference)
        if path.is_dir() and (path / MANIFEST).exists():
            matches = [Artifact(path, read_manifest(path))]
        else:
            listed = self.listed()
            named = [item for item in listed if item.entry.id == reference] or [
                item
                for item in listed
                if item.entry.id.startswith(reference) or item.entry.id.endswith(f"-{reference}")
            ]
            if kind is not None and any(item.entry.kind == kind for item in named):
                named = [item for item in named if item.entry.kind == kind]
            if len(named) > 1:
                shown = ", ".join(item.entry.id for item in named[:_SHOWN])
                more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
                raise UsageError(
                    f"'{reference}' means more than one artifact: {shown}{more}; give the whole id."
                )
            matches = [item.open() for item in named]
        if not matches:
            for place in self.unreadable(kind):
                if isinstance(place, Path) and place.name.startswith(reference):
                    read_manifest(place)
            ids = [item.entry.id for item in self.listed(kind)]
            raise UsageError(
                f"No {kind or 'artifact'} '{reference}' in the workspace '{self}'"
                + did_you_mean(reference, ids)
            )
        if kind is not None and matches[0].manifest.kind != kind:
            raise UsageError(
                f"'{reference}' is of kind '{matches[0].manifest.kind}', but '{kind}' was expected here."
            )
        return matches[0]

    def current(self, kind: str, split: str | None = None) -> Artifact:
        """Return the artifact of a kind that was last written or reused (for a split, where one is given).

        Raises:
            UsageError: there is none yet.
        """
        artifact = self.find_current(kind, split)
        if artifact is None:
            of = f" of split '{split}'" if split else ""
            raise UsageError(f"No {kind}{of} in the workspace '{self}' yet.")
        return artifact

    def find_current(self, kind: str, split: str | None = None) -> Artifact | None:
        """Return what `current` does, or None; where that artifact was removed, the newest one left.

        Raises:
            UsageError: the file that tells the last ones is damaged.
        """
        try:
            name = self._read_current().get(kind, {}).get("*last*" if split is None else split)
        except ValueError:
            raise UsageError(
                f"Nobody knows the last {kind}: '{CURRENT}' in the workspace '{self}' is damaged. Name them by their "
                "id, see `unsupseg list`, or make the same call for them again, which reuses them."
            ) from None
        listed = self.listed(kind) if name is not None else []
        if name is not None and all(item.entry.id != name for item in listed):
            self.refresh_now()  # another machine made it a moment ago
            listed = self.listed(kind)
        if split is not None:
            listed = [item for item in listed if item.entry.split == split]
        candidates = [item for item in listed if item.entry.id == name] or listed
        return candidates[-1].open() if candidates else None

    def children(self, artifact: Artifact) -> list[Artifact]:
        """Return the artifacts that were made from this one."""
        key = artifact.manifest.key
        return [item.open() for item in self.listed() if any(used == key for *_, used in item.entry.inputs)]

    # Writing ---------------------------------------------------------------------------------------------

    def produce(
        self,
        identity: Identity,
        work: Callable[[Draft], dict[str, Any]],
        *,
        force: bool = False,
        wait: float = 3600.0,
        current: bool = True,
        tell: Callable[[str], None] | None = None,
    ) -> tuple[Artifact, bool]:
        """Return the artifact of a identity, made by ``work`` unless it is there; and whether it was reused.

        ``work`` fills the draft's folder and returns the summary for the manifest. When the process is
        killed the draft stays, and the next call with the same key goes on with it. With ``force`` the old
        artifact stays until the new one is complete. An artifact of which `verify` or a look at the sizes says
        that it is damaged is made again. With ``current`` it becomes what a call that names none takes. ``tell`` is
        told when another process is waited for, and when much is left to do at the end.

        Raises:
            UnsupsegError: the workspace cannot be written, or another process keeps the key for ``wait``
                seconds.
        """
        if not force and (artifact := self._find_whole(identity)):
            return self._take(artifact, current), True
        self._make_folders(identity.kind)
        subject = f"The artifact '{identity.id}'"
        with disk_errors(self.root), self._hold(self._lock(identity), subject, wait, tell):
            for shard in self._shards(self._lock(identity)):
                with self._hold(shard, subject, wait, tell):  # processes that write a part of this artifact
                    pass
            self._restore(identity)
            if not force and (artifact := self._find_whole(identity)):
                return self._take(artifact, current), True
            draft = self._draft(identity)
            if not _is_complete(draft, identity):
                clock = _Clock()
                self._complete(identity, draft, work(draft), clock, tell)
            artifact = self._publish(draft, identity)
        return self._take(artifact, current), False

    def has(self, identity: Identity) -> bool:
        """Tell whether the artifact of an identity is there and, by a look at its files' sizes, whole."""
        return self._find_whole(identity) is not None

    def produce_shard(
        self,
        identity: Identity,
        shard: str,
        start: Callable[[Draft], SharedWork],
        *,
        wait: float = 3600.0,
        current: bool = True,
        tell: Callable[[str], None] | None = None,
    ) -> tuple[Artifact | None, bool]:
        """Make one process's share of an artifact; the process that finishes last publishes it.

        Each share has a lock of its own while it is written, so that shares do not wait for each other. The
        artifact's lock is held only to lay out the files (``start``) and to publish, so that a call without
        shards keeps out, and is kept out. With ``current`` it becomes what a call that names none takes.

        Returns:
            the artifact, or None while parts of other shares are missing; and whether it was there before.

        Raises:
            UnsupsegError: another process writes this share, or the whole artifact.
        """
        if artifact := self._find_whole(identity):
            return self._take(artifact, current), True
        self._make_folders(identity.kind)
        lock, subject, clock = self._lock(identity), f"The artifact '{identity.id}'", _Clock()
        share_lock = lock.with_name(f"{lock.stem}-shard-{shard}.lock")
        with disk_errors(self.root), ExitStack() as stack:
            with self._hold(lock, subject, wait, tell):
                self._restore(identity)
                if artifact := self._find_whole(identity):
                    return self._take(artifact, current), True
                share = f"Shard {shard} of '{identity.id}'"
                stack.enter_context(self._hold(share_lock, share, 0, tell))
                draft = self._draft(identity, shared=True)
                job = None if _is_complete(draft, identity) else start(draft)
                draft.finish(SHARED)
            if job is not None:
                job.write()
        with disk_errors(self.root), self._hold(lock, subject, wait, tell):
            if artifact := self._find_whole(identity):
                return self._take(artifact, current), False
            if job is not None and not _is_complete(draft, identity):
                draft.refresh()
                if job.missing():
                    return None, False
                self._complete(identity, draft, job.close(), clock, tell)
            artifact = self._publish(draft, identity)
        return self._take(artifact, current), False

    def _find_whole(self, identity: Identity) -> Artifact | None:
        """Return the published artifact of a identity, unless it is known to be damaged or too old to be read."""
        try:
            artifact = self.find_key(identity.kind, identity.key)
        except OlderFormatError:
            return None
        if artifact is None or artifact.folder.name.startswith("."):
            return None
        return artifact if self._is_whole(artifact) else None

    def _is_whole(self, artifact: Artifact) -> bool:
        """Tell whether an artifact is not known to be damaged, and its files have their sizes."""
        if (artifact.folder / _DAMAGED).exists():
            return False
        files = ((artifact.folder / name, output.bytes) for name, output in artifact.manifest.outputs.items())
        return all(size_of(path) == size for path, size in files)

    def _hold(
        self, lock: Path, subject: str, wait: float, tell: Callable[[str], None] | None
    ) -> AbstractContextManager[None]:
        """Keep all other processes from what a lock file stands for, see `exclusive`."""
        return exclusive(lock, subject, wait, tell)

    def _shards(self, lock: Path) -> list[Path]:
        """Return the locks of shares of the artifact that a lock stands for."""
        return list(self.root.glob(f"{LOCKS}/{lock.stem}-shard-*.lock"))

    def _take(self, artifact: Artifact, current: bool) -> Artifact:
        if current:
            self.take([artifact])
        return artifact

    def take(self, artifacts: Sequence[Artifact]) -> None:
        """Let artifacts become what calls that name none take, all at once; of one kind and split the last."""
        with disk_errors(self.root):
            self._set_current(artifacts)

    def _lock(self, identity: Identity) -> Path:
        return self.root / LOCKS / f"{identity.kind}-{identity.key[:16]}.lock"

    def draft_folder(self, identity: Identity) -> Path:
        """Return where the artifact of an identity lies while it is written."""
        return self.root / identity.kind / f"{_PARTIAL}-{identity.key[:16]}"

    def _draft(self, identity: Identity, shared: bool = False) -> Draft:
        """Open the draft of an identity, which several processes write where it is ``shared``.

        Raises:
            UnsupsegError: a link would lead its files elsewhere.
        """
        folder = self.draft_folder(identity)
        for path in (folder, *folder.rglob("*")):
            refuse_link(path)
        return Draft(folder)

    def _complete(
        self,
        identity: Identity,
        draft: Draft,
        summary: dict[str, Any],
        clock: _Clock,
        tell: Callable[[str], None] | None,
    ) -> None:
        """Write the manifest: from then on only the rename is missing, whatever happens."""
        size = sum(path.stat().st_size for path in draft.folder.rglob("*") if path.is_file())
        if tell is not None and size > _MUCH:
            tell(f"all is computed; {size / 2**30:.0f} GiB are read once more for their digests")
        (draft.folder / HDF5).unlink(missing_ok=True)  # of a call that was killed here
        if identity.execution.get("store") == "hdf5":
            draft.take_over()
        outputs = {**outputs_of(draft.folder), **draft.elsewhere()}
        digest = Manifest.digest_of(outputs)
        if identity.execution.get("store") == "hdf5":
            packed = [path.name for path in pack_hdf5(draft.folder)]
            outputs = {name: output for name, output in outputs.items() if name.split("/")[0] not in packed}
            outputs[HDF5] = output_of(draft.folder, draft.folder / HDF5)
        # Scratch is left out: it is gone a moment later, and there are some files of it for every block.
        sync_files([*lasting(draft.folder), draft.folder])
        manifest = identity.manifest(
            environment=describe_environment(),
            started=clock.started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock.ticks, 3),
            peak_memory_bytes=peak_memory_bytes(),
            outputs=outputs,
            digest=digest,
            summary=summary,
            warnings=draft.warnings,
            deterministic=draft.deterministic,
        )
        write_atomic(draft.folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        sync_file(draft.folder)

    def _publish(self, draft: Draft, identity: Identity) -> Artifact:
        """Remove from a complete draft what its manifest does not list, and give it its name."""
        manifest = read_manifest(draft.folder)
        listed = {draft.folder / name for name in (MANIFEST, *manifest.outputs)}
        for path in sorted(draft.folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # not empty: it holds outputs
                    path.rmdir()
            elif path not in listed:
                path.unlink()
        target = self.root / identity.kind / identity.id
        retired = self._retired(identity.kind, identity.key)
        if target.is_symlink():
            target.unlink()
        if target.exists():
            shutil.rmtree(retired, ignore_errors=True)
            target.rename(retired)
        draft.folder.rename(target)
        sync_file(target.parent)
        shutil.rmtree(retired, ignore_errors=True)
        return self.open(target)

    def _retired(self, kind: str, key: str) -> Path:
        """Return where an artifact lies for the moment in which another takes its name."""
        return self.root / kind / f"{_RETIRED}-{key[:16]}"

    def _is_stranded(self, folder: Path) -> bool:
        """Tell whether a retired artifact is the only one of its name: a call was killed in that moment."""
        if not folder.name.startswith(_RETIRED) or folder.is_symlink():
            return False
        try:
            return not folder.with_name(read_manifest(folder).id).exists()
        except UnsupsegError:
            return False

    def _restore(self, identity: Identity) -> None:
        """Give a stranded artifact its name back; the caller holds the artifact's lock."""
        retired = self._retired(identity.kind, identity.key)
        if self._is_stranded(retired):
            retired.rename(retired.with_name(read_manifest(retired).id))

    def require_folder(self) -> None:
        """Raise UsageError where the workspace is a file."""
        if self.root.is_file():
            raise UsageError(
                f"The workspace '{self}' is a file; name a folder with --workspace or $UNSUPSEG_WORKSPACE."
            )

    def _make_folders(self, kind: str) -> None:
        self.require_folder()
        try:
            for folder in (self.root / kind, self.root / LOCKS):
                refuse_link(folder)
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The workspace '{self}' cannot be written ({reason_of(error)}); give another folder with "
                "--workspace or $UNSUPSEG_WORKSPACE."
            ) from None

    def _read_current(self) -> dict[str, dict[str, str]]:
        """Return what names the last artifacts; raises ValueError where the file is damaged."""
        try:
            return as_current((self.root / CURRENT).read_text(encoding="utf-8"))
        except OSError:
            return {}

    def _set_current(self, artifacts: Sequence[Artifact]) -> None:
        if not os.access(self.root, os.W_OK):
            return  # reusing from a read-only workspace is fine
        (self.root / LOCKS).mkdir(exist_ok=True)
        with exclusive(self.root / LOCKS / "current.lock", f"'{CURRENT}'", wait=60):
            try:
                current = self._read_current()
            except ValueError:  # damaged: written anew
                current = {}
            write_json(self.root / CURRENT, with_current(current, artifacts))

    # Care ------------------------------------------------------------------------------------------------

    def verify(self, artifact: Artifact) -> list[str]:
        """Return what `verifying` finds wrong with an artifact."""
        return [problem for problems in self.verifying(artifact) for problem in problems]

    def verifying(self, artifact: Artifact) -> Iterator[list[str]]:
        """Yield after each file of an artifact what is wrong: it is missing or changed; at last, its inputs are other.

        An artifact with files missing or changed is marked, so that the call that made it makes it again.
        """
        damaged = False
        for name, output in artifact.manifest.outputs.items():
            problem = self._problem(artifact, name, output)
            damaged |= bool(problem)
            yield [f"{artifact.id}: the file '{name}' {problem}"] if problem else []
        self._mark(artifact, damaged)
        yield self._other_inputs(artifact)

    def _problem(self, artifact: Artifact, name: str, output: Output) -> str:
        """Return what is wrong with a file of an artifact; nothing where it is as it was written."""
        path = artifact.folder / name
        if not path.exists():
            return MISSING
        return "" if is_as_listed(path, output) else CHANGED

    def _mark(self, artifact: Artifact, damaged: bool) -> None:
        """Note whether an artifact is damaged."""
        mark = artifact.folder / _DAMAGED
        with suppress(OSError):  # a read-only workspace: --force makes the artifact again
            if mark.is_symlink():
                mark.unlink()
            if damaged:
                mark.touch()
            else:
                mark.unlink(missing_ok=True)

    def _other_inputs(self, artifact: Artifact) -> list[str]:
        """Return which inputs of an artifact cannot be read, or have other content than it was made from."""
        problems = []
        for item in artifact.manifest.inputs:
            try:
                present = self.find_key(item.kind, item.key)
            except UnsupsegError as error:
                problems.append(str(error))
                continue
            if present is not None and present.manifest.digest != item.digest:
                problems.append(f"{artifact.id}: its input '{item.id}' has other content now: run it again")
        return problems

    def leftovers(self, *, shared: bool = False) -> list[Path | str]:
        """Return the drafts of interrupted calls, which nobody is writing now.

        With ``shared`` also those of several processes, some of which may not have begun yet.
        """
        drafts: list[Path] = []
        for folder in (path for kind in self.kinds() for path in self.root.glob(f"{kind}/{_PARTIAL}-*")):
            if self._is_stranded(folder) or (not shared and Draft.is_shared(folder)):
                continue
            key = folder.name.removeprefix(f"{_PARTIAL}-").removeprefix("retired-")
            locks = self.root.glob(f"{LOCKS}/{folder.parent.name}-{key}*.holder")
            if all(_is_free(holder.with_suffix(".lock")) for holder in locks):
                drafts.append(folder)
        return [*sorted(drafts)]

    def require_own(self, place: Path | str) -> None:
        """Raise UsageError unless a folder is an artifact or a draft of this workspace: nothing else is removed."""
        folder = Path(place)
        own = folder.parent.parent.resolve() == self.root.resolve() and not folder.parent.is_symlink()
        if not own:
            raise UsageError(
                f"'{folder}' is no artifact of the workspace '{self}', and nothing else is removed: give the "
                "--workspace that it lies in."
            )

    def remove(self, place: Path | str) -> None:
        """Remove an artifact or a draft by its place; raises UsageError for anything else."""
        self.require_own(place)
        folder = Path(place)
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)


class _Clock:
    """When the work began: the date for people, and the ticks that time is measured by."""

    def __init__(self) -> None:
        self.started, self.ticks = datetime.now(UTC), time.monotonic()


def _is_complete(draft: Draft, identity: Identity) -> bool:
    """Tell whether a draft, of this or an earlier call, is what its manifest says; else it is begun without one."""
    path = draft.folder / MANIFEST
    if not path.exists():
        return False
    try:
        manifest = read_manifest(draft.folder)
        named = (manifest.kind, manifest.id, manifest.key) == (identity.kind, identity.id, identity.key)
        if named and all(is_as_listed(draft.folder / name, out) for name, out in manifest.outputs.items()):
            return True
    except UnsupsegError:
        pass
    path.unlink()
    return False


def _is_free(lock: Path) -> bool:
    try:
        with exclusive(lock, "", wait=0):
            return True
    except UnsupsegError:
        return False
