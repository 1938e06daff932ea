"""The hub that weights come from: whether it answers is known in seconds, before its client begins to wait."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

_TRIES = 2
_SECONDS = 2.0  # for an answer of any kind; with the start of the program both tries stay below ten seconds


class HubSilentError(Exception):
    """The hub does not answer, and what was asked for is not in the cache of its client."""


@contextmanager
def hub() -> Iterator[None]:
    """Let the hub's client work; where the hub does not answer, from its cache alone.

    Raises:
        HubSilentError: the hub does not answer and the cache does not suffice.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield
        return
    if any(_answers(constants.ENDPOINT) for _ in range(_TRIES)):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except Exception:  # the client raises errors of many libraries
        raise HubSilentError(
            f"the hub ({constants.ENDPOINT}) does not answer, tried {_TRIES} times"
        ) from None
    finally:
        constants.HF_HUB_OFFLINE = False


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
