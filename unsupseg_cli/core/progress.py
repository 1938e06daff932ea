"""How long work reports itself, without knowing about a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Reporter(Protocol):
    """What a stage tells its caller while it works."""

    def info(self, message: str) -> None:
        """Say one line."""

    def warn(self, message: str) -> None:
        """Say one line that the user should act upon."""

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, done: int = 0
    ) -> Iterator[T]:
        """Yield the items while showing rate and time left; ``done`` were finished earlier."""


class Silent:
    """A reporter that says nothing: the default of the Python API."""

    def info(self, message: str) -> None:
        """Say nothing."""

    def warn(self, message: str) -> None:
        """Say nothing."""

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, done: int = 0
    ) -> Iterator[T]:
        """Yield the items."""
        yield from items
