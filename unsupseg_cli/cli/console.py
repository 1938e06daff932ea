"""What the person sees: stderr for everything but the result, bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from unsupseg_cli.artifacts.environment import resident_memory_bytes
from unsupseg_cli.core.errors import UnsupsegError

T = TypeVar("T")
_PLAIN_INTERVAL = 15.0  # seconds between plain progress lines, so that logs stay short


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        memory = f"{resident_memory_bytes() / 2**30:.1f} GiB"
        return Text(f"{task.speed:.1f}/s {memory}" if task.speed else memory, style="dim")


class TerminalReporter:
    """Reports to stderr: a bar with rate, time left and memory on a terminal, plain lines elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._quiet = quiet

    def __reduce__(self) -> tuple[type[TerminalReporter], tuple[bool]]:
        """Pickle without the console, for a process that works beside this one."""
        return TerminalReporter, (self._quiet,)

    def info(self, message: str) -> None:
        """Print one line unless quiet."""
        if not self._quiet:
            self.console.print(escape(message), style="dim", soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print one line that stands out."""
        self.console.print(f"[yellow]warning:[/yellow] {escape(message)}", soft_wrap=True)

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, done: int = 0
    ) -> Iterator[T]:
        """Yield the items while showing progress."""
        if self._quiet:
            yield from items
        elif self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                _Rate(),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                yield from progress.track(items, total=total, completed=done, description=description)
        else:
            yield from self._plain(items, description, total, done)

    def _plain(self, items: Iterable[T], description: str, total: int | None, done: int) -> Iterator[T]:
        start = last_line = time.monotonic()
        count = done
        for item in items:
            yield item
            count += 1
            now = time.monotonic()
            if now - last_line > _PLAIN_INTERVAL:
                rate = (count - done) / (now - start)
                remaining = f", {(total - count) / rate:.0f} s left" if total else ""
                self.info(f"{description}: {count}/{total or '?'} ({rate:.1f}/s{remaining})")
                last_line = now


def result(line: str) -> None:
    """Print the one line of stdout, a path in the bytes that it has on disk whatever stdout is encoded in.

    Raises:
        UnsupsegError: stdout cannot be written.
    """
    try:
        sys.stdout.flush()
        if (raw := getattr(sys.stdout, "buffer", None)) is None:
            sys.stdout.write(line + "\n")
        else:
            raw.write(os.fsencode(line) + b"\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnsupsegError(f"The result cannot be written to stdout ({reason}): {line}") from None


def print_table(table: Table) -> None:
    """Print a table to stdout, as wide as its content: names and figures are never cut off."""
    console = Console(highlight=False)
    wide = console.options.update(max_width=_WIDEST)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table, markup=False)


_WIDEST = 1000  # characters
