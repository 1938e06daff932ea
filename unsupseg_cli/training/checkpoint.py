"""What a training leaves on disk while it runs: its state, and a line of figures now and then."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unsupseg_cli.core.errors import UnsupsegError, reason_of
from unsupseg_cli.training.events import event_writer
from unsupseg_cli.training.loop import Record

METRICS = "metrics.jsonl"
STATE = Path("checkpoint", "state.pt")
_PARTS = {"module", "optimizer", "task", "step", "seconds"}


class DiskCheckpoint:
    """The loop's state in a folder, replaced atomically, read without unpickling code.

    Args:
        folder: of the draft.
        tell: is told when a saved state is damaged, and a training begins anew for that.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = lambda _: None) -> None:
        self._path, self._tell = folder / STATE, tell
        self._path.parent.mkdir(exist_ok=True)

    def load(self) -> dict[str, Any] | None:
        """Return the last saved state, or None; one that cannot be read is discarded."""
        if not self._path.exists():
            return None
        try:
            _require_whole(self._path)
            state: dict[str, Any] = torch.load(self._path, weights_only=True)
            _require_finite(state.get("module"))
        except (
            OSError,
            RuntimeError,
            ValueError,
            EOFError,
            KeyError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
        ) as error:
            self._tell(f"the checkpoint cannot be read ({reason_of(error)}): the training begins anew")
            self._path.unlink(missing_ok=True)
            return None
        if missing := _PARTS - state.keys():
            raise UnsupsegError(
                f"The checkpoint '{self._path}' was written by an earlier version (it has no '{min(missing)}'); remove "
                "that file, and the same call begins anew."
            )
        return state

    def step(self) -> int:
        """Return the step that a training goes on from: 0 without a saved state."""
        return int((self.load() or {"step": 0})["step"])

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state."""
        partial = self._path.with_suffix(".tmp")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # before the name: a power loss leaves the old state or the new one
        partial.replace(self._path)


def _require_whole(path: Path) -> None:
    """Raise ValueError where a checksum in torch's file, a ZIP archive, does not fit: reading it checks none."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"'{damaged}' in it was changed")


def _require_finite(value: Any) -> None:
    """Raise ValueError where a state holds NaN or infinite weights: a training saves none."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
        raise ValueError("it holds NaN or infinite values")
    for part in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    ):
        _require_finite(part)


class Journal:
    """The figures of a training, a line of JSON for each record.

    Args:
        folder: holds the file.
        first: the step that the training goes on from: later records of a killed call are dropped.
        writes: whether this process is the one that writes.
        events: folder that the figures also go to, as TensorBoard events.
    """

    def __init__(self, folder: Path, first: int, writes: bool = True, events: Path | None = None) -> None:
        self._path, self._writes = folder / METRICS, writes
        self.records = [record for record in _read(self._path) if record["step"] < first]
        if writes:
            self._path.write_text("".join(map(_line, self.records)), encoding="utf-8")
        self._write_events = event_writer(events, first) if events is not None and writes else None

    def add(self, record: Record) -> None:
        """Append a record."""
        self.records.append(record)
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        if self._write_events is not None:
            self._write_events(record)


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _read(path: Path) -> list[Record]:
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed run may be cut
    return records
