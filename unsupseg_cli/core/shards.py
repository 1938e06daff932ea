"""Shards: the parts of a call's work that one of several processes makes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from unsupseg_cli.core.errors import UsageError

T = TypeVar("T")

IMAGES = 64
"""Most images that go to a shard together, such as the windows of a raster that lie beside each other."""


class Shard(NamedTuple):
    """One of ``of`` shards, ``number`` from 1 on; it has every ``of``-th part."""

    number: int = 1
    of: int = 1

    def __str__(self) -> str:
        """Return what --shard takes."""
        return f"{self.number}/{self.of}"

    def take(self, parts: Iterable[T]) -> list[T]:
        """Return the parts of this shard, in order."""
        return list(islice(parts, self.number - 1, None, self.of))

    def take_images(self, images: Sequence[T]) -> list[T]:
        """Return the images of this shard, of which as many are a part as give each the same, `IMAGES` at most."""
        rounds = max(1, math.ceil(len(images) / (self.of * IMAGES)))
        size = max(1, math.ceil(len(images) / (self.of * rounds)))
        starts = self.take(range(0, len(images), size))
        return [image for start in starts for image in images[start : start + size]]


WHOLE = Shard()
"""The only shard: all parts."""


def parse_shard(text: str | None) -> Shard:
    """Return the shard of a text "i/n", the only one for None; raises UsageError unless 1 <= i <= n."""
    if text is None:
        return WHOLE
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return Shard(int(number), int(count))
    raise UsageError(f"--shard '{text}' is not of the form i/n with i from 1 to n, for example 2/4.")
