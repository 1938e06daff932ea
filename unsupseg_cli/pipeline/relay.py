"""Progress of work elsewhere in one place: workers tell a queue, the process with the terminal shows one bar."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol, TypeVar

from unsupseg_cli.core.progress import Reporter, Silent

T = TypeVar("T")
_EVERY = 0.5  # seconds between two counts that a worker tells


class EventQueue(Protocol):
    """What both sides need of a queue, as `ray.util.queue.Queue` has it."""

    def put_nowait(self, item: Any) -> None:
        """Add an event."""

    def qsize(self) -> int:
        """Return how many events there are."""

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take events."""


@dataclass(frozen=True)
class Event:
    """What a worker tells of a piece of work ``source``: a line, or how far a loop over ``total`` items is."""

    source: str
    kind: str
    text: str
    total: int | None = None
    count: int = 0


class Relay:
    """The reporter of a worker. A queue that is gone takes nothing away from the work."""

    def __init__(self, queue: EventQueue, source: str) -> None:
        self._queue, self._source = queue, source

    def __reduce__(self) -> tuple[Any, ...]:
        """Say nothing in processes beside the worker."""
        return Silent, ()

    def info(self, message: str) -> None:
        """Pass on one line."""
        self._tell(Event(self._source, "info", message))

    def warn(self, message: str) -> None:
        """Pass on one line that the user should act upon."""
        self._tell(Event(self._source, "warn", message))

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, done: int = 0
    ) -> Iterator[T]:
        """Yield the items, and tell now and then how many."""
        count, told = done, time.monotonic()
        self._tell(Event(self._source, "loop", description, total, count))
        for item in items:
            yield item
            count += 1
            if time.monotonic() - told > _EVERY:
                told = time.monotonic()
                self._tell(Event(self._source, "loop", description, total, count))
        self._tell(Event(self._source, "loop", description, total, count))

    def _tell(self, event: Event) -> None:
        with suppress(Exception):
            self._queue.put_nowait(event)


class Board:
    """Shows what the workers of some pieces of work tell: each line once, and their loops of one name as one bar."""

    def __init__(self, queue: EventQueue, reporter: Reporter, sources: Sequence[str]) -> None:
        self._queue, self._reporter, self._sources = queue, reporter, sources
        self._said: set[str] = set()
        self._loops: dict[str, dict[str, Event]] = {}  # by name, then by piece of work
        self._shown: set[str] = set()
        self._running: Collection[str] = ()

    def follow(self, rounds: Iterator[Collection[str]]) -> None:
        """Show what is told while something else goes on, which yields now and then who works."""
        for running in rounds:
            self._look(running)
            while (name := self._ready()) is not None:
                self._shown |= {*takewhile(name.__ne__, self._loops), name}
                done = self._count(name)
                for _ in self._reporter.track(self._counted(name, rounds), name, self._total(name), done):
                    pass
        self._look(())

    def _look(self, running: Collection[str]) -> None:
        """Take what was told since the last look."""
        self._running, count = running, self._queue.qsize()
        for event in self._queue.get_nowait_batch(count) if count else ():
            if event.kind == "loop":
                self._loops.setdefault(event.text, {})[event.source] = event
            elif event.text not in self._said:
                self._said.add(event.text)
                (self._reporter.warn if event.kind == "warn" else self._reporter.info)(event.text)

    def _ready(self) -> str | None:
        """Return the newest loop without a bar, once all who work have told of theirs: then the total is known."""
        ready = [name for name, told in self._loops.items() if told.keys() >= set(self._running)]
        return next((name for name in reversed(ready) if name not in self._shown), None)

    def _counted(self, name: str, rounds: Iterator[Collection[str]]) -> Iterator[None]:
        """Yield once for each item that any worker did in its loop of a name, until another loop has its bar."""
        seen = self._count(name)
        while (running := next(rounds, None)) is not None and self._ready() is None:
            self._look(running)
            yield from [None] * (self._count(name) - seen)
            seen = max(seen, self._count(name))
        self._look(running or ())
        yield from [None] * (self._count(name) - seen)

    def _count(self, name: str) -> int:
        return sum(event.count for event in self._loops[name].values())

    def _total(self, name: str) -> int | None:
        """Return the items of all: those that did not begin yet count as the mean of the others."""
        totals = [event.total for event in self._loops[name].values()]
        known = [total for total in totals if total is not None]
        return round(sum(known) * len(self._sources) / len(known)) if len(known) == len(totals) else None
