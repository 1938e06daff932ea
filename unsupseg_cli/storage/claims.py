"""Claims: who makes an artifact, over machines that share nothing but a bucket.

A claim is an object that is made only where there is none, and changed only where it is still as it was read. Its
holder renews it while it works. A claim that was not renewed for as long as it says is free: its holder is dead, or
does not reach the bucket. That time is measured by whoever waits, with a clock of its own, so that the clocks of
machines need not agree.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.progress import duration
from unsupseg_cli.storage.objects import Objects, Version

CLAIMS = "claims"
LEASE = 60.0
"""Seconds after which a claim that is not renewed is free: longer than a network usually fails."""
_RENEWALS = 4  # of a lease: three may be lost
_POLLS = 20  # looks at a claim that is waited for, in one lease
_RECENTLY = 10  # leases: clocks of a machine and of a service may differ by less
_FREE = ""  # the token of a claim that was given back


@dataclass
class Claim:
    """A claim that this process holds; ``token`` is its alone."""

    name: str
    token: str
    lost_to: str | None = None

    def require(self) -> None:
        """Raise UnsupsegError where another process holds the claim by now."""
        if self.lost_to is not None:
            raise UnsupsegError(
                f"The claim on '{self.name}' passed to {self.lost_to}, since this process did not renew it in time: "
                "it stopped; call again to take what the other one makes."
            )


@dataclass(frozen=True)
class _Content:
    """What the object of a claim says."""

    holder: str
    cache: str
    token: str
    seconds: float
    renewals: int = 0

    def to_bytes(self) -> bytes:
        return json.dumps(vars(self), sort_keys=True).encode()

    @classmethod
    def of(cls, data: bytes) -> _Content:
        """Return what an object says; one that cannot be read is of an unknown holder, and passes in the usual time."""
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            value = json.loads(data)
            holder, cache, token = (str(value[name]) for name in ("holder", "cache", "token"))
            return cls(holder, cache, token, float(value["seconds"]))
        return cls("another process", "", "unknown", LEASE)


class Claims:
    """The claims of a workspace.

    Args:
        objects: of the workspace.
        cache: names the cache of this machine. Whoever asks for a claim holds the lock file of the same name there, so
            that a claim of this cache is that of a dead process.
        seconds: of a lease.
    """

    def __init__(self, objects: Objects, cache: str, seconds: float = LEASE) -> None:
        self._objects, self._cache, self._seconds = objects, cache, seconds

    @contextmanager
    def hold(
        self, name: str, subject: str, wait: float, tell: Callable[[str], None] | None = None
    ) -> Iterator[Claim]:
        """Hold a claim, renewed until the end; a process that loses it is interrupted.

        Where another process holds it, ``tell`` is told which one before the wait. A wait is never shorter than what
        shows whether the other one is alive.

        Raises:
            UnsupsegError: another process held it for more than ``wait`` seconds, or took it over.
        """
        claim = Claim(name, secrets.token_hex(8))
        version = self._take(claim, subject, wait, tell)
        renewal = _Renewal(self, claim, version)
        renewal.start()
        try:
            try:
                yield claim
            finally:
                renewal.stop()
        except KeyboardInterrupt:
            claim.require()
            raise

    def names(self, beginning: str) -> list[str]:
        """Return the names of claims that begin so, held or not."""
        names = (_name(item.path) for item in self._objects.list(CLAIMS))
        return [name for name in names if name.startswith(beginning)]

    def live(self) -> dict[str, str]:
        """Return the tokens, by name, of claims that were renewed not long ago by the clock of the service."""
        recently = datetime.now(UTC) - timedelta(seconds=_RECENTLY * self._seconds)
        paths = [item.path for item in self._objects.list(CLAIMS) if item.modified > recently]
        found = [(path, self._objects.read(path)) for path in paths]
        tokens = {_name(path): _Content.of(stored.data).token for path, stored in found if stored is not None}
        return {name: token for name, token in tokens.items() if token != _FREE}

    def write(self, claim: Claim, version: Version, renewals: int, token: str) -> Version | None:
        """Put a claim that this process holds again; None where another process has it now."""
        return self._objects.replace(_path(claim.name), self._content(token, renewals), version)

    @property
    def pause(self) -> float:
        """Seconds between two renewals."""
        return self._seconds / _RENEWALS

    def holder(self, claim: Claim) -> str:
        """Return who holds a claim."""
        stored = self._objects.read(_path(claim.name))
        return _Content.of(stored.data).holder if stored else "nobody"

    def _content(self, token: str, renewals: int = 0) -> bytes:
        me = f"process {os.getpid()} on {socket.gethostname()}"
        return _Content(me, self._cache, token, self._seconds, renewals).to_bytes()

    def _take(self, claim: Claim, subject: str, wait: float, tell: Callable[[str], None] | None) -> Version:
        path, mine = _path(claim.name), self._content(claim.token)
        begun, told = time.monotonic(), False
        seen: Version | None = None
        since = begun
        while True:
            stored = self._objects.read(path)
            if stored is None:
                if (version := self._objects.create(path, mine)) is not None:
                    return version
                continue
            other, now = _Content.of(stored.data), time.monotonic()
            if stored.version != seen:
                seen, since = stored.version, now
            if other.token == _FREE or other.cache == self._cache or now - since > other.seconds:
                if (version := self._objects.replace(path, mine, stored.version)) is not None:
                    return version
                continue
            if now - begun > max(wait, other.seconds * (1 + 1 / _RENEWALS)):
                raise UnsupsegError(
                    f"{subject} is being written by {other.holder}; wait for it, or stop that process and call again."
                )
            if tell and not told:
                told = True
                tell(
                    f"{subject} is being written by {other.holder}: waiting for it, at most "
                    f"{duration(max(wait, other.seconds))}"
                )
            time.sleep(other.seconds / _POLLS)


class _Renewal(threading.Thread):
    """Renews a claim; where it is lost, interrupts the main thread if that is the one that works."""

    def __init__(self, claims: Claims, claim: Claim, version: Version) -> None:
        super().__init__(name=f"claim {claim.name}", daemon=True)
        self._claims, self._claim, self._version = claims, claim, version
        self._ended, self._renewals = threading.Event(), 0
        self._guard = threading.Lock()
        main = threading.main_thread()
        self._worker = main.ident if threading.current_thread() is main else None

    def run(self) -> None:
        while not self._ended.wait(self._claims.pause):
            with suppress(UnsupsegError), self._guard:  # out of reach: another try at the next renewal
                if not self._ended.is_set():
                    self._renew(self._claim.token)

    def stop(self) -> None:
        """Give the claim back."""
        self._ended.set()
        with self._guard:
            if self._claim.lost_to is None:
                with suppress(UnsupsegError):  # it passes by itself
                    self._renew(_FREE)

    def _renew(self, token: str) -> None:
        self._renewals += 1
        version = self._claims.write(self._claim, self._version, self._renewals, token)
        if version is not None:
            self._version = version
            return
        if self._ended.is_set():
            return  # the work is done, and it was given up to another one a moment ago
        self._claim.lost_to = self._claims.holder(self._claim)
        if self._worker is not None:
            signal.pthread_kill(self._worker, signal.SIGINT)  # it may wait in a system call


def _name(path: str) -> str:
    return path.removeprefix(f"{CLAIMS}/").removesuffix(".json")


def _path(name: str) -> str:
    return f"{CLAIMS}/{name}.json"
