"""The one training loop: seeded batches, Fabric, checkpoints through a callback."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UnsupsegError

Record = dict[str, float]


class Task(ABC):
    """What the loop trains."""

    module: nn.Module

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer over the module's parameters."""

    @abstractmethod
    def losses(self, views: list[int], step: int) -> dict[str, Tensor]:
        """Return the scalar losses of a batch of views; ``loss`` is the one to minimise."""

    def after_step(self, step: int) -> None:  # noqa: B027 - most tasks have nothing to do here
        """Do what follows an optimizer step, for example an EMA update."""


@dataclass(frozen=True)
class Schedule:
    """How long to train and how often to report and to save."""

    steps: int
    batch: int
    views: int
    seed: int
    log_every: int = 10
    save_every: int = 100


class Checkpoint(Protocol):
    """Where the loop keeps its state; the stage decides what that means on disk."""

    def load(self) -> dict[str, Any] | None:
        """Return the last saved state, or None."""

    def save(self, state: dict[str, Any]) -> None:
        """Keep a state in place of the last one."""


class NoCheckpoint:
    """The checkpoint of a training that is not resumed: the default of the Python API."""

    def load(self) -> dict[str, Any] | None:
        """Return None: the training begins at step 0."""
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Drop the state."""


def batch_views(schedule: Schedule, step: int) -> list[int]:
    """Return the views of a step: a fresh permutation per epoch, the same in a resumed run."""
    size = min(schedule.batch, schedule.views)
    per_epoch = schedule.views // size
    epoch, position = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(seeds.stream(schedule.seed, "batches", epoch))
    order = torch.randperm(schedule.views, generator=generator)
    return [int(view) for view in order[position * size : (position + 1) * size]]


def fit(
    task: Task,
    schedule: Schedule,
    fabric: Fabric,
    *,
    checkpoint: Checkpoint | None = None,
    log: Callable[[Record], None] | None = None,
    track: Callable[[range, int], Iterator[int]] | None = None,
) -> None:
    """Train a task in place, going on from its checkpoint if there is one.

    Raises:
        UnsupsegError: the loss became NaN or infinite; the last checkpoint is kept.
    """
    checkpoint = checkpoint or NoCheckpoint()
    module, optimizer = fabric.setup(task.module, task.optimizer())
    first = 0
    if (state := checkpoint.load()) is not None:
        task.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["step"])
    steps = range(first, schedule.steps)
    for step in track(steps, first) if track else steps:
        torch.manual_seed(seeds.stream(schedule.seed, "step", step))
        module.train()
        losses = task.losses(batch_views(schedule, step), step)
        value = float(losses["loss"].detach())
        if not math.isfinite(value):
            raise UnsupsegError(
                f"The loss became {value} at step {step}; look for NaN in the features (`unsupseg verify`) or "
                "lower the learning rate. The last checkpoint is kept."
            )
        optimizer.zero_grad()
        fabric.backward(losses["loss"])
        optimizer.step()
        task.after_step(step)
        if log and (step % schedule.log_every == 0 or step == schedule.steps - 1):
            log({"step": float(step), **{name: float(term.detach()) for name, term in losses.items()}})
        if (step + 1) % schedule.save_every == 0 and step + 1 < schedule.steps:
            saved = {"module": task.module.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoint.save({**saved, "step": step + 1})
