"""The workspace in object storage: published by one object, written and read through a local cache.

Below the address lie

- ``workspace.json``, which says that it is a workspace, and ``current.json``,
- ``published/<kind>/<key>.json``, the record of an artifact: its manifest, and which attempt counts. It is put only
  where there is none, or in place of the one that was found damaged or is made again by force,
- ``<kind>/<id>/<attempt>/``, the files of one attempt: no two processes write one,
- ``claims/``, ``shared/`` and ``damaged/``: who makes what, what several machines make together, what `verify` found.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from unsupseg_cli.artifacts.cache import Cache
from unsupseg_cli.artifacts.current import CURRENT, as_current, with_current
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.files import disk_errors, exclusive, require_space, write_atomic
from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.artifacts.manifest import (
    MANIFEST,
    Manifest,
    NewerFormatError,
    Output,
    parse_manifest,
    read_manifest,
)
from unsupseg_cli.artifacts.workspace import (
    CHANGED,
    LOCKS,
    MISSING,
    Artifact,
    Workspace,
)
from unsupseg_cli.core.address import Address, is_address
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.storage.claims import LEASE, Claim, Claims
from unsupseg_cli.storage.leftovers import DAMAGED, leftovers
from unsupseg_cli.storage.objects import ForbiddenError, Objects, Version, endpoint_of, open_store
from unsupseg_cli.storage.records import Record, Records, path_of
from unsupseg_cli.storage.shared import SHARES, SharedDraft, attempt_of, begin_attempt
from unsupseg_cli.storage.transfer import fetch_files, lacking, put_files

MARK = "workspace.json"
_FORMAT = 1
_FRESH = 1.0  # seconds for which a listing of the records counts: one command asks many times
_CONTENDERS = 20  # tries to write current.json while others do


class RemoteWorkspace(Workspace):
    """A workspace in a bucket; its folder is the mirror in a cache.

    Args:
        address: of the workspace.
        cache: of this machine.
        tell: is told when the endpoint does not answer, and what is fetched.
        lease: seconds after which the claim of a process that does not renew it passes.
    """

    def __init__(
        self,
        address: Address,
        cache: Cache,
        tell: Callable[[str], None] | None = None,
        lease: float = LEASE,
    ) -> None:
        self.address, self.cache, self.lease = address, cache, lease
        super().__init__(cache.folder(_folder_name(address)))
        self._open(tell)

    def _open(self, tell: Callable[[str], None] | None) -> None:
        self.tell = tell or _silent
        self.objects = Objects(self.address, open_store(self.address), self.tell)
        self.records = Records(self.objects, self.root)
        self._claims = Claims(self.objects, _cache_id(self.root), self.lease)
        self._held: dict[str, Claim] = {}
        self._seen: dict[
            str, Version | None
        ] = {}  # records as they were when it was settled that they are made
        self._brought: set[tuple[Path, str]] = set()
        self._sizes: dict[str, dict[str, int]] = {}
        self._refreshed, self._is_ours = 0.0, False

    def __reduce__(self) -> Any:
        """Return what another process opens the same workspace by."""
        return RemoteWorkspace, (self.address, self.cache, None, self.lease)

    def __copy__(self) -> RemoteWorkspace:
        return RemoteWorkspace(self.address, self.cache, self.tell, self.lease)

    def __str__(self) -> str:
        return str(self.address)

    @property
    def shared_folder(self) -> None:
        """None: machines share the bucket."""

    # Where files are -------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Tell whether something was written here; raises UsageError where something else lies here."""
        if self._is_ours:
            return True
        stored = self.objects.read(MARK)
        if stored is None:
            if not self.objects.list(limit=1):
                return False
            stored = self.objects.read(MARK)  # another process may have begun it in between
        if stored is None:
            raise UsageError(
                f"'{self.address}' holds objects, and is no workspace: it has no {MARK}; name an empty prefix, or the "
                "address of a workspace."
            )
        with suppress(ValueError, TypeError, AttributeError):
            self._is_ours = json.loads(stored.data).get("format") == _FORMAT
        if not self._is_ours:
            raise UnsupsegError(
                f"'{self.address}/{MARK}' is of another format than {_FORMAT}: update unsupseg, or give another one."
            )
        return True

    def refresh(self) -> None:
        """Bring the manifests in the mirror up to date."""
        if time.monotonic() - self._refreshed < _FRESH:
            return
        if self.exists():
            self.records.refresh()
        self._refreshed = time.monotonic()

    def refresh_now(self) -> None:
        """Bring the manifests up to date even if they were a moment ago."""
        self._refreshed = 0.0
        self.refresh()

    def open(self, folder: Path) -> Artifact:
        """Return the artifact in a folder of the mirror."""
        return Artifact(folder, read_manifest(folder), self)

    def place(self, artifact: Artifact) -> str:
        """Return the address of an artifact's files."""
        return f"{self.address}/{self._prefix(artifact.manifest)}"

    def bring(self, artifact: Artifact) -> None:
        """Fetch those files of an artifact that are not in the cache, and keep it there while this process lives.

        Raises:
            UnsupsegError: it does not fit into the cache, or a file is missing or was changed.
        """
        entry, manifest = artifact.folder, artifact.manifest
        if (entry, manifest.digest) in self._brought:
            return
        self.cache.pin(entry)
        if lacking(artifact):
            lock = self._locks() / f"fetch-{manifest.kind}-{manifest.key[:16]}.lock"
            with disk_errors(self.root), exclusive(lock, f"'{artifact.id}' in the cache", 3600, self.tell):
                if files := lacking(artifact):
                    self._fetch(artifact, files)
        self._brought.add((entry, manifest.digest))

    def _fetch(self, artifact: Artifact, files: dict[str, Output]) -> None:
        self.refresh_now()
        if read_manifest(artifact.folder).digest != artifact.manifest.digest:
            raise UnsupsegError(
                f"'{artifact.id}' in '{self.address}' was made again since this call began: call again."
            )
        subject = f"'{artifact.id}'"
        self.cache.make_room(artifact.folder, _bytes(artifact.manifest), subject)
        require_space(artifact.folder, sum(output.bytes for output in files.values()), subject)
        fetch_files(artifact, files, self._prefix(artifact.manifest), self.objects)

    def _prefix(self, manifest: Manifest) -> str:
        name = f"{manifest.kind}/{manifest.key}"
        if (known := self.records.known().get(name)) is None:
            self.refresh_now()  # it was published a moment ago
            known = self.records.known().get(name)
        return f"{manifest.kind}/{manifest.id}/{known.attempt if known else 'unknown'}"

    def get(self, reference: str | Path, kind: str | None = None) -> Artifact:
        """Return the artifact named by an id, the beginning of one, or its address.

        Raises:
            UsageError: nothing, or more than one artifact, is meant; or it is of another kind.
        """
        if isinstance(reference, str) and is_address(reference):
            parts = (self._within(reference) or "").split("/")
            if len(parts) < 2:
                raise UsageError(f"'{reference}' is no artifact of the workspace '{self}'.")
            reference = parts[1]
        try:
            return super().get(reference, kind)
        except UsageError:
            for name, known in self.records.known().items():
                if known.problem and str(reference).endswith(name.partition("/")[2][:8]):
                    raise UnsupsegError(known.problem) from None
            raise

    def unreadable(self, kind: str | None = None) -> list[Path | str]:
        """Return the addresses of records that cannot be read, and folders of the mirror that are damaged."""
        damaged = super().unreadable(kind)
        names = [name for name, known in self.records.known().items() if known.problem]
        of_kind = [name for name in names if kind in (None, name.partition("/")[0])]
        return [*damaged, *(f"{self.address}/{path_of(*name.split('/', 1))}" for name in of_kind)]

    def damaged(self) -> list[str]:
        """Return why each record that names no artifact cannot be read."""
        self.refresh()
        return [known.problem for known in self.records.known().values() if known.problem]

    # Writing ---------------------------------------------------------------------------------------------

    @contextmanager
    def _hold(
        self, lock: Path, subject: str, wait: float, tell: Callable[[str], None] | None
    ) -> Iterator[None]:
        """Keep out the other processes of this machine by a lock file, and those of others by a claim."""
        with (
            super()._hold(lock, subject, wait, tell),
            self._claims.hold(lock.stem, subject, wait, tell) as claim,
        ):
            self._held[lock.stem] = claim
            self._refreshed = 0.0
            self._seen.clear()
            try:
                yield
            finally:
                del self._held[lock.stem]

    def _shards(self, lock: Path) -> list[Path]:
        there = self._claims.names(f"{lock.stem}-shard-")
        return [*super()._shards(lock), *(lock.with_name(f"{name}.lock") for name in there)]

    def _make_folders(self, kind: str) -> None:
        super()._make_folders(kind)
        if not self.exists():
            self.objects.create(MARK, json.dumps({"format": _FORMAT}).encode())

    def _find_whole(self, identity: Identity) -> Artifact | None:
        found = self.records.read(identity.kind, identity.key) if self.exists() else None
        self._seen[identity.key] = found[1] if found else None
        if found:
            self._refuse_newer(identity, found[0])
        return super()._find_whole(identity)

    def _refuse_newer(self, identity: Identity, record: Record) -> None:
        """Raise NewerFormatError for a record of a newer version of the tool; what is damaged is made anew."""
        try:
            parse_manifest(record.manifest, f"{self.address}/{path_of(identity.kind, identity.key)}")
        except NewerFormatError:
            raise
        except UnsupsegError:
            pass

    def _is_whole(self, artifact: Artifact) -> bool:
        if self.objects.head(_mark(artifact.manifest)) is not None:
            return False
        sizes, prefix = self._listed_sizes(artifact.manifest), self._prefix(artifact.manifest)
        outputs = artifact.manifest.outputs.items()
        return all(sizes.get(f"{prefix}/{name}") == output.bytes for name, output in outputs)

    def _listed_sizes(self, manifest: Manifest) -> dict[str, int]:
        return {item.path: item.size for item in self.objects.list(self._prefix(manifest))}

    def _draft(self, identity: Identity, shared: bool = False) -> Draft:
        draft, scratch = super()._draft(identity), f"{SHARES}/{self._lock(identity).stem}"
        attempt = attempt_of(self.objects, scratch)
        found = self.records.read(identity.kind, identity.key) if attempt else None
        if found is not None and found[0].attempt == attempt:  # it was published, and found damaged
            self.objects.remove_below(scratch)
            attempt = ""
        if not attempt and not shared:
            return draft
        attempt = attempt or begin_attempt(self.objects, scratch)
        return SharedDraft(draft.folder, self.objects, f"{identity.kind}/{identity.id}/{attempt}", scratch)

    def _publish(self, draft: Draft, identity: Identity) -> Artifact:
        """Put the files, then the record; where another process was first, its artifact is taken."""
        claim, manifest = self._held[self._lock(identity).stem], read_manifest(draft.folder)
        shared = draft if isinstance(draft, SharedDraft) and not draft.taken_over else None
        prefix = shared.attempt if shared else f"{identity.kind}/{identity.id}/{claim.token}"
        claim.require()
        names = [name for name in manifest.outputs if shared is None or not shared.is_published(name)]
        put_files(draft.folder, names, prefix, self.objects, once=shared is not None)
        claim.require()
        before = self.records.read(identity.kind, identity.key)
        record = Record(attempt=prefix.rpartition("/")[2], manifest=json.loads(manifest.model_dump_json()))
        path = path_of(identity.kind, identity.key)
        version = self._seen.get(identity.key, before[1] if before else None)
        if version is None:
            put = self.objects.create(path, record.to_bytes())
        else:
            put = self.objects.replace(path, record.to_bytes(), version)
        if put is None:
            self._refreshed = 0.0
            return self._take_other(draft, identity, "" if shared else prefix)
        self.objects.write(f"{prefix}/{MANIFEST}", f"{manifest.model_dump_json(indent=1)}\n".encode())
        self.objects.remove([_mark(manifest)])
        self.objects.remove_below(f"{SHARES}/{self._lock(identity).stem}")
        if isinstance(draft, SharedDraft) and draft.taken_over:
            self.objects.remove_below(draft.attempt)
        if before is not None and before[0].attempt != record.attempt:
            self.objects.remove_below(f"{identity.kind}/{before[0].folder}")
        artifact = super()._publish(draft, identity)
        self.cache.count(artifact.folder, _bytes(manifest))
        self.refresh_now()
        return artifact

    def _take_other(self, draft: Draft, identity: Identity, prefix: str) -> Artifact:
        """Return what another process published meanwhile, and remove what this one made."""
        if prefix:
            self.objects.remove_below(prefix)
        artifact = self.find_made(identity.kind, identity.key)
        if artifact is None:
            raise UnsupsegError(
                f"'{identity.id}' in '{self.address}' was published and removed by others meanwhile: call again."
            )
        shutil.rmtree(draft.folder)
        self.tell(f"'{identity.id}' was published by another process, whose artifact is taken")
        return artifact

    def _read_current(self) -> dict[str, dict[str, str]]:
        stored = self.objects.read(CURRENT)
        return as_current(stored.data.decode()) if stored else {}

    def _set_current(self, artifacts: Sequence[Artifact]) -> None:
        for _ in range(_CONTENDERS):  # what others name at the same time is kept
            stored = self.objects.read(CURRENT)
            try:
                current = as_current(stored.data.decode()) if stored else {}
            except ValueError:  # damaged: written anew
                current = {}
            changed = with_current(current, artifacts)
            if changed == current:
                return
            data = (json.dumps(changed, indent=1, sort_keys=True) + "\n").encode()
            with suppress(ForbiddenError):
                put = (
                    self.objects.replace(CURRENT, data, stored.version)
                    if stored
                    else self.objects.create(CURRENT, data)
                )
                if put is None:
                    continue
            return  # written, or reusing with credentials that only read

    # Care ------------------------------------------------------------------------------------------------

    def verifying(self, artifact: Artifact) -> Iterator[list[str]]:
        """Yield what is wrong, see `Workspace.verifying`; every object is read."""
        self.refresh_now()
        self._sizes = {artifact.id: self._listed_sizes(artifact.manifest)}
        yield from super().verifying(artifact)

    def _problem(self, artifact: Artifact, name: str, output: Output) -> str:
        path = f"{self._prefix(artifact.manifest)}/{name}"
        size = self._sizes[artifact.id].get(path)
        if size is None:
            return MISSING
        whole = size == output.bytes and self.objects.digest(path, size) == output.sha256
        return "" if whole else CHANGED

    def _mark(self, artifact: Artifact, damaged: bool) -> None:
        with suppress(ForbiddenError):  # credentials that only read: --force makes the artifact again
            if damaged:
                self.objects.write(_mark(artifact.manifest), b"{}\n")
            else:
                self.objects.remove([_mark(artifact.manifest)])

    def leftovers(self, *, shared: bool = False) -> list[Path | str]:
        """Return the drafts of interrupted calls on this machine, and attempts in the bucket that nobody makes now.

        With ``shared`` also what several machines make together, some of which may not have begun yet.
        """
        self.refresh_now()
        left = leftovers(self.objects, self.records, self._claims, shared=shared)
        return [*super().leftovers(shared=shared), *(f"{self.address}/{prefix}" for prefix in left)]

    def require_own(self, place: Path | str) -> None:
        """Raise UsageError unless a place is an artifact or an attempt of this workspace: nothing else is removed."""
        if not is_address(place):
            super().require_own(place)
        elif len((self._within(str(place)) or "").split("/")) not in (2, 3):
            raise UsageError(
                f"'{place}' is no artifact of the workspace '{self}', and nothing else is removed: give the "
                "--workspace that it lies in."
            )

    def remove(self, place: Path | str) -> None:
        """Remove an artifact or an attempt by its address, or a draft of this machine by its folder."""
        self.require_own(place)
        if not is_address(place):
            super().remove(place)
            return
        prefix = self._within(str(place)) or ""
        for name, known in self.records.known().items():
            kind, _, key = name.partition("/")
            if f"{kind}/{known.id}/{known.attempt}" == prefix:
                self.objects.remove([path_of(kind, key), f"{DAMAGED}/{kind}-{key[:16]}.json"])
        self.objects.remove_below(prefix)
        self._refreshed = 0.0

    def _within(self, text: str) -> str | None:
        try:
            return self.address.within(text)
        except ValueError:
            return None

    def _locks(self) -> Path:
        locks = self.root / LOCKS
        locks.mkdir(exist_ok=True)
        return locks


def _silent(message: str) -> None:
    pass


def _folder_name(address: Address) -> str:
    """Return the folder of the mirror: readable, and another one for each address and endpoint."""
    digest = hashlib.sha256(f"{address} {endpoint_of(address)}".encode()).hexdigest()
    return f"{address.scheme}-{address.bucket}-{address.name}"[:80] + f"-{digest[:12]}"


def _cache_id(root: Path) -> str:
    """Return the name of a mirror, which no other has."""
    path = root / ".id"
    with FileLock(root / ".id.lock"):
        if not path.exists():
            write_atomic(path, secrets.token_hex(8))
        return path.read_text(encoding="utf-8")


def _mark(manifest: Manifest) -> str:
    return f"{DAMAGED}/{manifest.kind}-{manifest.key[:16]}.json"


def _bytes(manifest: Manifest) -> int:
    return sum(output.bytes for output in manifest.outputs.values())
