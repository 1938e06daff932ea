"""What the person sees: stderr for everything but the result, bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from rich.cells import cell_len
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
from unsupseg_cli.core.names import visible
from unsupseg_cli.core.progress import duration

T = TypeVar("T")
_ERR = Console(stderr=True, highlight=False)
_PLAIN_INTERVAL = 15.0  # seconds between plain progress lines, so that logs stay short


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        memory = f"{resident_memory_bytes() / 2**30:.1f} GiB"
        return Text(f"{rate(task.speed)} {memory}" if task.speed else memory, style="dim")


def rate(speed: float) -> str:
    """Return items per second as text; of slow work the seconds that one takes."""
    return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"


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
            self.console.print(escape(visible(message)), style="dim", soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print one line that stands out."""
        self.console.print(f"[yellow]warning:[/yellow] {escape(visible(message))}", soft_wrap=True)

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
                speed = (count - done) / (now - start)
                remaining = f", {duration((total - count) / speed)} left" if total else ""
                self.info(f"{description}: {count}/{total or '?'} ({rate(speed)}{remaining})")
                last_line = now


def say(text: str) -> None:
    """Print one line to stderr as it is: no part of a name is an instruction for the terminal."""
    _ERR.print(visible(text), soft_wrap=True, markup=False)


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
        with suppress(OSError, ValueError), Path(os.devnull).open("w") as nothing:
            os.dup2(
                nothing.fileno(), sys.stdout.fileno()
            )  # what is left is flushed at the end, and fails again
        raise UnsupsegError(f"The result cannot be written to stdout ({reason}): {line}") from None


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of plain text to stdout, as wide as its content; thousands of rows take no time."""
    table = [list(header), *([visible(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    sys.stdout.flush()


def print_table(table: Table) -> None:
    """Print a table to stdout, as wide as its content: names and figures are never cut off."""
    for column in table.columns:
        column._cells = [visible(cell) if isinstance(cell, str) else cell for cell in column._cells]
    console = Console(highlight=False)
    wide = console.options.update(max_width=_WIDEST)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table, markup=False)


_WIDEST = 1000  # characters
