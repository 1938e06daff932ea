"""The one training loop: what a task says, seeded batches split over processes, steps, checkpoints by a callback."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.batch_norm import share_batch_norms

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # a second of imports, which only trainings need

Record = dict[str, float]
Losses = dict[str, Tensor]
EXPLAINED = {
    "loss": "what training lowers: good if it falls, then stays",
    "learning_rate": "as scheduled",
    "gradient": "norm of the gradient before it is clipped: good if it does not grow",
}
"""What the figures are that the loop reports of every task."""


class Task(ABC):
    """What the loop trains. Everything but the optimizer and the losses has a default.

    Over several processes each computes its share of every batch: ``losses`` are means over the views of the share,
    and the loop averages gradients so that they are those of the whole batch, weighted by ``weight``, and lets the
    batch norms within the module normalise over all of them (`training/batch_norm.py`). What else couples
    the views of a batch goes through `Batch.average` and `Batch.gather`; random numbers are drawn for the whole batch
    (``batch.whole``), of which a process takes its ``places``. All processes make the same calls in the same order.
    """

    module: nn.Module
    accumulate: int = 1
    """Parts of a step whose gradients are added up, one after the other."""
    clip_norm: float | None = None
    """Most that the norm of all gradients together may be."""
    clip_value: float | None = None
    """Most that each entry of a gradient may be, up or down."""
    unused_parameters: bool = False
    """Whether a step may leave parameters without a gradient: several processes must know that beforehand."""
    advice: str = "look for NaN in the features (`unsupseg verify`) or lower the learning rate"
    """What to do about a loss that is no number."""
    explained: Mapping[str, str] = MappingProxyType({})
    """What each figure is and what is good, written over its curve; of the loop's own see `EXPLAINED`."""

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer over the module's parameters."""

    @abstractmethod
    def losses(self, batch: Batch, read: Any) -> Losses:
        """Return the scalar losses of this process's share of a batch; ``loss`` is the one to minimise.

        Args:
            batch: which views they are.
            read: what ``read`` returned for the batch.
        """

    def read(self, batch: Batch) -> Any:
        """Read what ``losses`` needs of a batch: in a thread, while the step before is computed.

        Without torch's global random numbers, which belong to the step.
        """

    def weight(self, views: Sequence[int]) -> float:
        """Return how much views count in the mean that a loss is: their number, if each counts alike."""
        return len(views)

    def views(self, schedule: Schedule, step: int) -> list[int]:
        """Return the views of a step; process r of n takes every n-th from the r-th on."""
        return batch_views(schedule, step)

    def rate(self, progress: float) -> float | None:
        """Return the factor on the optimizer's learning rates at a fraction of the run; None: they stay."""
        return None

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Do what comes before the first step of a run, new or resumed; the state is restored already."""

    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Do what comes before the gradients of a step."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Do what follows an optimizer step: a moving average, say, or a restart of the module."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside module and optimizer: tensors, numbers, lists and dicts of them."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` returned."""


@dataclass(frozen=True)
class Schedule:
    """How long to train and how often to report and to save.

    A run takes ``steps``, or as many as fit into ``hours`` where those are given. It saves after every ``save_every``
    steps or ``save_seconds``, and at the end.
    """

    steps: int
    batch: int
    views: int
    seed: int
    log_every: int = 10
    save_every: int = 100
    save_seconds: float | None = None
    hours: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """Return the fraction of the run that is done, in [0, 1]."""
        if self.hours is not None:
            return min(1.0, seconds / (3600 * self.hours))
        return min(step / self.steps, 1.0)


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
    order = _order(schedule.views, schedule.seed, epoch)
    return [int(view) for view in order[position * size : (position + 1) * size]]


@lru_cache(maxsize=1)  # of ten million views a permutation takes a second: too long for each step
def _order(views: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seeds.stream(seed, "batches", epoch))
    return torch.randperm(views, generator=generator)


def fit(
    task: Task,
    schedule: Schedule,
    fabric: Fabric,
    *,
    checkpoint: Checkpoint | None = None,
    log: Callable[[Record], None] | None = None,
    track: Callable[[Iterable[int], int], Iterator[int]] | None = None,
) -> None:
    """Train a task in place, going on from its checkpoint if there is one.

    Args:
        task: the same in every process.
        schedule: how long.
        fabric: the processes and this one's device.
        checkpoint: read by every process, written by the first.
        log: is given the figures of the whole batch now and then, in the first process.
        track: is given the numbers of the steps, and how many were done before; yields them.

    Raises:
        UsageError: there are more processes than views in a batch.
        UnsupsegError: the loss or the gradient became NaN or infinite; the last checkpoint is kept.
    """
    run = _Run(task, schedule, fabric, checkpoint or NoCheckpoint())
    task.begin(run.optimizer)
    steps = run.steps()
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        ahead = None
        for step in track(steps, run.first) if track else steps:
            parts, read = ahead.result() if ahead else run.read(step)
            more = schedule.hours is not None or step + 1 < schedule.steps
            ahead = reader.submit(run.read, step + 1) if more else None
            run.step(step, parts, read)
            if step % schedule.log_every == 0 or step == schedule.steps - 1:
                record = run.record(parts)
                if log and fabric.is_global_zero:
                    log(record)
            if run.is_time_to_save():
                run.save()
    run.save()


class _Forward(nn.Module):
    """A task's module, whose forward is a task's losses: Fabric wraps it, so that gradients are averaged."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, losses: Callable[[], Losses]) -> Losses:
        """Return the losses."""
        return losses()


class _Run:
    """The steps of one call of `fit`."""

    def __init__(self, task: Task, schedule: Schedule, fabric: Fabric, checkpoint: Checkpoint) -> None:
        self.task, self.schedule, self.fabric, self.checkpoint = task, schedule, fabric, checkpoint
        if fabric.world_size > 1:
            share_batch_norms(task.module)
        self.optimizer = task.optimizer()
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.model, self.wrapped = fabric.setup(_Forward(task.module), self.optimizer)
        self.first, self.seconds = 0, 0.0
        if (state := checkpoint.load()) is not None:
            task.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            task.restore(state["task"])
            self.first, self.seconds = int(state["step"]), float(state["seconds"])
        self.done = self.first
        self.start = time.monotonic() - self.seconds
        self.saved = time.monotonic()
        self.losses: list[Losses] = []
        self.figures: dict[str, float] = {}

    def steps(self) -> Iterable[int]:
        """Return the numbers of the steps that are left, or yield them until the hours are over."""
        if self.schedule.hours is None:
            return range(self.first, self.schedule.steps)
        return self._until(3600 * self.schedule.hours)

    def _until(self, limit: float) -> Iterator[int]:
        # One clock for all processes: another would stop a step before the others, or take another learning rate.
        while (seconds := float(self.fabric.broadcast(self.seconds))) < limit:
            self.seconds = seconds
            yield self.done

    def read(self, step: int) -> tuple[list[Batch], list[Any]]:
        """Return this process's shares of the parts of a step, and what the task reads of them."""
        task, rank, count = self.task, self.fabric.global_rank, self.fabric.world_size
        views = task.views(self.schedule, step)
        size = len(views) // task.accumulate
        if size < count:
            raise UsageError(
                f"{count} processes cannot share a batch of {size}: take at most {size} --devices, or a larger batch."
            )
        batches = []
        for part in range(task.accumulate):
            whole = views[part * size : (part + 1) * size]
            places = range(rank, size, count)
            own = [whole[place] for place in places]
            share = task.weight(own) / task.weight(whole) if count > 1 else 1.0
            batches.append(Batch(step, whole, places, share, part=part, process=rank, processes=count))
        return batches, [task.read(batch) for batch in batches]

    def step(self, step: int, batches: list[Batch], read: list[Any]) -> None:
        """Take one step."""
        task, fabric = self.task, self.fabric
        progress = self.schedule.progress(step, self.seconds)
        torch.manual_seed(seeds.stream(self.schedule.seed, "step", step))
        self.model.train()
        self.losses, self.figures = [], {"step": float(step)}
        if (rate := task.rate(progress)) is not None:
            for group, base in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = base * rate
            self.figures["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        task.before_step(step, self.optimizer)
        self.wrapped.zero_grad()
        for batch, data in zip(batches, read, strict=True):
            adds = batch is not batches[-1]
            with fabric.no_backward_sync(self.model) if adds else nullcontext():
                losses = self.model(partial(task.losses, replace(batch, progress=progress), data))
                self._require_finite(losses["loss"].detach(), "loss", step)
                # The processes' gradients are averaged, while the shares and parts of a batch add up.
                factor = fabric.world_size * batch.share / len(batches)
                fabric.backward(losses["loss"] if factor == 1 else losses["loss"] * factor)
            self.losses.append({name: value.detach() for name, value in losses.items()})
        if (norm := self._clip()) is not None:
            self._require_finite(norm, "gradient", step)
            self.figures["gradient"] = float(norm)
        self.wrapped.step()
        self.done, self.seconds = step + 1, time.monotonic() - self.start
        task.after_step(step, self.optimizer)

    def record(self, batches: list[Batch]) -> Record:
        """Return the figures of the last step, means over its whole batch."""
        totals = dict.fromkeys(self.losses[0], 0.0)
        for batch, losses in zip(batches, self.losses, strict=True):
            values = torch.stack([value.float() for value in losses.values()])
            for name, value in zip(losses, batch.average(values).tolist(), strict=True):
                totals[name] += value / len(batches)
        return {**self.figures, **totals}

    def is_time_to_save(self) -> bool:
        """Tell whether a checkpoint is due before the end."""
        if self.schedule.save_seconds is not None:
            return time.monotonic() - self.saved > self.schedule.save_seconds
        return self.done % self.schedule.save_every == 0 and self.done < self.schedule.steps

    def save(self) -> None:
        """Save the state, in the first process."""
        if self.fabric.is_global_zero:
            self.checkpoint.save(
                {
                    "module": self.task.module.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "task": self.task.state(),
                    "step": self.done,
                    "seconds": self.seconds,
                }
            )
        self.saved = time.monotonic()

    def _clip(self) -> Tensor | None:
        """Clip the gradients as the task says; return their norm before, where it is the measure."""
        if self.task.clip_value is not None:
            self.fabric.clip_gradients(self.model, self.wrapped, clip_val=self.task.clip_value)
        if self.task.clip_norm is None:
            return None
        return self.fabric.clip_gradients(
            self.model, self.wrapped, max_norm=self.task.clip_norm, error_if_nonfinite=False
        )

    def _require_finite(self, value: Tensor, name: str, step: int) -> None:
        if not math.isfinite(float(value)):
            raise UnsupsegError(
                f"The {name} became {float(value)} at step {step}; {self.task.advice}. The last checkpoint is kept."
            )
