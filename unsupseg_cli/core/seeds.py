"""Seeds: one integer per run, independent streams by name."""

from __future__ import annotations

import hashlib


def stream(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream called ``names`` of a run with ``seed``.

    Streams are independent of each other and of the order in which they are drawn, so that a resumed
    run sees the numbers that an uninterrupted one would have seen.
    """
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
