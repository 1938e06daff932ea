"""Things of one size together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def indices_by(keys: Iterable[K]) -> dict[K, list[int]]:
    """Return the positions of each key, in order of their first appearance."""
    groups: dict[K, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return groups
