"""What the person sees: stderr for everything but the result, bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.control import Control
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
from unsupseg_cli.artifacts.outside import require_outside
from unsupseg_cli.core.errors import UnsupsegError, UsageError, reason_of
from unsupseg_cli.core.names import visible
from unsupseg_cli.core.progress import duration

T = TypeVar("T")
_WIDEST = 1000  # characters
_PLAIN_INTERVAL = 15.0  # seconds between plain progress lines, so that logs stay short


class _Log:
    """The file of --log: what stderr shows, as plain lines that begin with the time."""

    path: Path | None = None
    file: TextIO | None = None

    def open(self, path: Path) -> None:
        """Write to a file from now on, behind what it holds; raises UsageError where that is not possible."""
        try:
            require_outside(path, "--log")
            path.parent.mkdir(parents=True, exist_ok=True)
            _require_log(path)
            self.file, self.path = path.open("a", encoding="utf-8", errors="backslashreplace"), path
        except OSError as error:
            raise UsageError(
                f"--log '{path}' cannot be written ({reason_of(error)}); name another file."
            ) from None

    def close(self) -> None:
        """Write no more."""
        if self.file is not None:
            with suppress(OSError):  # what the disk has no room for was told
                self.file.close()
        self.path = self.file = None

    def write(self, *objects: Any, markup: bool = True) -> None:
        """Write what a console prints."""
        if self.file is None or all(isinstance(part, Control) for part in objects):
            return
        plain = Console(file=self.file, width=_WIDEST, color_system=None, highlight=False, emoji=False)
        with plain.capture() as captured:
            plain.print(*objects, markup=markup, soft_wrap=True)
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        lines = filter(str.strip, captured.get().splitlines())  # bars leave empty ones
        try:
            self.file.writelines(f"{now} {line.rstrip()}\n" for line in lines)
            self.file.flush()
        except OSError as error:
            path = self.path
            self.close()
            text = f"--log '{path}' cannot be written ({reason_of(error)}): the work goes on without it"
            StderrConsole().print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True)


def _require_log(path: Path) -> None:
    """Raise UsageError where a file is there that is no log, whose lines begin with their time."""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(11)
        if start and not re.fullmatch(rb"\d{4}-\d\d-\d\d ", start):
            raise UsageError(
                f"--log '{path}' is there and is no log of an earlier call, to which lines could be added; name "
                "another file."
            )


LOG = _Log()


class StderrConsole(Console):
    """The console of stderr: the log gets what it prints."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print to stderr and to the log."""
        super().print(*objects, **options)
        LOG.write(*objects, markup=options.get("markup", True))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{rate(task.speed)} {_memory()}" if task.speed else _memory(), style="dim")


def _memory() -> str:
    return f"{resident_memory_bytes() / 2**30:.1f} GiB"


def rate(speed: float) -> str:
    """Return items per second as text; of slow work the seconds that one takes."""
    return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"


class TerminalReporter:
    """Reports to stderr: a bar with rate, time left and memory on a terminal, plain lines elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = StderrConsole()
        self._quiet = quiet

    def __reduce__(self) -> tuple[Any, tuple[bool, Path | None]]:
        """Pickle without the console, for a process that works beside this one."""
        return _reporter_beside, (self._quiet, LOG.path)

    def info(self, message: str) -> None:
        """Print one line unless quiet; the log gets it in any case."""
        text = escape(visible(message))
        if self._quiet:
            LOG.write(text)
        else:
            self.console.print(text, style="dim", soft_wrap=True)

    def table(self, table: Table) -> None:
        """Print a table unless quiet."""
        if not self._quiet:
            _show_controls(table)
            self.console.print(table, markup=False)

    def warn(self, message: str) -> None:
        """Print one line that stands out."""
        self.console.print(f"[yellow]warning:[/yellow] {escape(visible(message))}", soft_wrap=True)

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, done: int = 0
    ) -> Iterator[T]:
        """Yield the items while showing progress."""
        if self._quiet or not self.console.is_terminal:
            yield from self._plain(items, description, total, done, self.info)
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                _Rate(),
            )
            logged = self._plain(items, description, total, done, LOG.write)
            with Progress(*columns, console=self.console, transient=True) as progress:
                yield from progress.track(logged, total=total, completed=done, description=description)

    def _plain(
        self,
        items: Iterable[T],
        description: str,
        total: int | None,
        done: int,
        tell: Callable[[str], None],
    ) -> Iterator[T]:
        """Yield the items and tell the progress in a line now and then."""
        start = last_line = time.monotonic()
        count = done
        for item in items:
            yield item
            count += 1
            now = time.monotonic()
            if now - last_line > _PLAIN_INTERVAL:
                speed = (count - done) / (now - start)
                remaining = f", {duration((total - count) / speed)} left" if total else ""
                tell(f"{description}: {count}/{total or '?'} ({rate(speed)}{remaining}, {_memory()})")
                last_line = now


def _reporter_beside(quiet: bool, log: Path | None) -> TerminalReporter:
    """Return the reporter of a process that works beside the one with the terminal."""
    if log is not None and LOG.path != log:
        LOG.open(log)
    return TerminalReporter(quiet)


def say(text: str) -> None:
    """Print one line to stderr as it is: no part of a name is an instruction for the terminal."""
    StderrConsole().print(visible(text), soft_wrap=True, markup=False)


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
        reason = reason_of(error)
        with suppress(OSError, ValueError), Path(os.devnull).open("w") as nothing:
            os.dup2(
                nothing.fileno(), sys.stdout.fileno()
            )  # what is left is flushed at the end, and fails again
        what = f": {line}" if len(line) <= _WIDEST and "\n" not in line else ""  # a path, not a table
        raise UnsupsegError(f"The result cannot be written to stdout ({reason}){what}") from None


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of plain text to stdout, as wide as its content; thousands of rows take no time."""
    table = [list(header), *([visible(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    sys.stdout.flush()


def _show_controls(table: Table) -> None:
    """Write control characters in the cells of a table as what they are: names come from files."""
    for column in table.columns:
        column._cells = [visible(cell) if isinstance(cell, str) else cell for cell in column._cells]


def print_table(table: Table) -> None:
    """Print a table to stdout, as wide as its content: names and figures are never cut off."""
    _show_controls(table)
    console = Console(highlight=False)
    wide = console.options.update(max_width=_WIDEST)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table, markup=False)
