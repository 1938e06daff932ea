"""The hub that weights come from: whether it answers is known in seconds, before its client begins to wait."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

_TRIES = 2
_SECONDS = 2.0  # for an answer of any kind; with the start of the program both tries stay below ten seconds
_STALLED = 10.0  # seconds without a byte, of a download that began


class HubSilentError(Exception):
    """The hub does not answer, and what was asked for is not in the cache of its client."""


@contextmanager
def hub(file: str = "") -> Iterator[None]:
    """Let the clients of a hub work; where it does not answer, from their caches alone.

    Args:
        file: address of the file, or its path on Hugging Face's hub; whether the hub gives it is what is asked.

    Raises:
        HubSilentError: the hub does not answer and the cache does not suffice.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield
        return
    address = file if "://" in file else f"{constants.ENDPOINT}/{file}"
    answers = any(_answers(address) for _ in range(_TRIES))
    constants.HF_HUB_OFFLINE = not answers
    waits = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALLED if answers else _SECONDS)
    try:
        yield
    except Exception:  # the clients raise errors of many libraries
        if answers:
            raise
        where = "/".join(address.split("/")[:3])
        raise HubSilentError(f"the hub ({where}) does not answer, tried {_TRIES} times") from None
    finally:
        constants.HF_HUB_OFFLINE = False
        socket.setdefaulttimeout(waits)


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
