"""What a training leaves on disk while it runs: its state, and a line of figures now and then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.training.loop import Record

METRICS = "metrics.jsonl"
STATE = Path("checkpoint", "state.pt")
_PARTS = {"module", "optimizer", "task", "step", "seconds"}


class DiskCheckpoint:
    """The loop's state in a folder, replaced atomically, read without unpickling code."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATE
        self._path.parent.mkdir(exist_ok=True)

    def load(self) -> dict[str, Any] | None:
        """Return the last saved state, or None."""
        if not self._path.exists():
            return None
        state: dict[str, Any] = torch.load(self._path, weights_only=True)
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
        torch.save(state, partial)
        partial.replace(self._path)


class Journal:
    """The figures of a training, a line of JSON for each record.

    Args:
        folder: holds the file.
        first: the step that the training goes on from: later records of a killed call are dropped.
        writes: whether this process is the one that writes.
    """

    def __init__(self, folder: Path, first: int, writes: bool = True) -> None:
        self._path, self._writes = folder / METRICS, writes
        self.records = [record for record in _read(self._path) if record["step"] < first]
        if writes:
            self._path.write_text("".join(map(_line, self.records)), encoding="utf-8")

    def add(self, record: Record) -> None:
        """Append a record."""
        self.records.append(record)
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(record))


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
