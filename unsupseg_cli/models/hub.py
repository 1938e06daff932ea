"""The hub that weights come from: whether it gives a file is known in seconds, before its client begins to wait."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

_TRIES = 2
_SECONDS = 2.0  # for an answer of any kind; with the start of the program both tries stay below ten seconds
_STALLED = 3.0  # seconds without a byte, of a download that began, until its client tries once more
_PIECE = 64 * 1024  # bytes that are written as soon as they are there


class HubSilentError(Exception):
    """The hub does not give a file, and what was asked for is not in the cache of its client."""


@contextmanager
def hub(file: str, fetch: Callable[[], object], cache: Path) -> Iterator[None]:
    """Let the clients of a hub work once a file is there; where the hub does not answer, from their caches alone.

    Args:
        file: address of the file, or its path on Hugging Face's hub; whether the hub gives it is what is asked.
        fetch: lets the client bring the file into its cache.
        cache: folder that grows while it does.

    Raises:
        HubSilentError: the hub does not answer, or its download stalls, and the cache does not suffice. What its client
            raised where it gave up by itself is passed on.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield
        return
    address = file if "://" in file else f"{constants.ENDPOINT}/{file}"
    where = "/".join(address.split("/")[:3])
    silent = HubSilentError(f"the hub ({where}) does not answer, tried {_TRIES} times")
    problem: Exception | None = None if any(_answers(address) for _ in range(_TRIES)) else silent
    # Some clients tell their download on stdout, which holds the path of the artifact alone.
    with _impatient(_SECONDS if problem else _STALLED), redirect_stdout(sys.stderr):
        if problem is None:
            problem = _fetched(fetch, cache, where)
        constants.HF_HUB_OFFLINE = problem is not None
        try:
            yield
        except Exception:  # the clients raise errors of many libraries
            if problem is None:
                raise
            raise problem from None
        finally:
            constants.HF_HUB_OFFLINE = False


@contextmanager
def _impatient(seconds: float) -> Iterator[None]:
    """Let clients wait so long for a byte, and write what they get at once."""
    from huggingface_hub import constants

    mine: dict[str, Any] = {
        "HF_HUB_DOWNLOAD_TIMEOUT": seconds,
        "HF_HUB_ETAG_TIMEOUT": seconds,
        "DOWNLOAD_CHUNK_SIZE": _PIECE,
        "HF_HUB_DISABLE_XET": True,  # which keeps what it gets elsewhere until much is there
    }
    before = {name: getattr(constants, name) for name in mine}
    waits = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    for name, value in mine.items():
        setattr(constants, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(constants, name, value)
        socket.setdefaulttimeout(waits)


def _fetched(fetch: Callable[[], object], cache: Path, where: str) -> Exception | None:
    """Bring a file into the cache; return what hindered it, None where there is such a file or another one may serve.

    The clients go on trying for minutes, and cannot be stopped: what stalls is left behind in its thread, in silence.
    """
    from huggingface_hub.errors import EntryNotFoundError

    log = logging.getLogger("huggingface_hub")  # tells of every try
    level = log.level
    log.setLevel(logging.ERROR)
    stalled = HubSilentError(f"the download from the hub ({where}) stands still, tried {_TRIES} times")
    patience = _TRIES * _STALLED + 1  # the client waits a second before it tries again
    for _ in range(_TRIES):
        errors: list[Exception] = []

        def run(errors: list[Exception] = errors) -> None:
            try:
                fetch()
            except Exception as error:  # the clients raise errors of many libraries
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        size, since = -1, time.monotonic()
        while thread.is_alive():
            thread.join(0.1)
            if (now := _size(cache)) != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > patience:
                return stalled
        if not errors or not isinstance(errors[0], TimeoutError):
            log.setLevel(level)
            return errors[0] if errors and not isinstance(errors[0], EntryNotFoundError) else None
    return stalled


def _size(folder: Path) -> int:
    """Return the bytes of the files below a folder; those that go meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:
            continue
    return total


def _answers(url: str) -> bool:
    """Tell whether a server answers in time, whatever it says; looking up its name counts."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return answered.is_set()
