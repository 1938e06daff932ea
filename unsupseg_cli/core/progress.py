"""How long work reports itself, without knowing about a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from tqdm.auto import tqdm

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


class TqdmReporter:
    """Prints lines and tqdm's bars: for scripts and notebooks that use the Python API."""

    def info(self, message: str) -> None:
        """Print one line."""
        tqdm.write(message)

    def warn(self, message: str) -> None:
        """Print one line that stands out."""
        tqdm.write(f"warning: {message}")

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, done: int = 0
    ) -> Iterator[T]:
        """Yield the items beside a bar."""
        yield from tqdm(items, desc=description, total=total, initial=done)


def duration(seconds: float | None) -> str:
    """Return a time as text: hours, minutes and seconds."""
    if seconds is None:
        return "unknown"
    minutes, remaining = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{remaining:02d}"
