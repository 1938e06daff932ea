"""The figures of a training as TensorBoard events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unsupseg_cli.training.loop import Record


def event_writer(folder: Path, first: int) -> Callable[[Record], None]:
    """Return a function of a record that writes its figures as scalars.

    Args:
        folder: of the event files.
        first: the step that the training goes on from: what a stopped call wrote from there on is hidden.
    """
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=first or None)

    def write(record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, int(record["step"]))
        writer.flush()

    return write
