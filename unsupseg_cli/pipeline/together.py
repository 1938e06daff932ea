"""Training that several processes share: those of --devices, or those that torchrun started beside this one.

The first process holds the artifact's lock and writes its draft; the others train with it and write nothing.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.sources import Sources
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.processes import processes_of_torchrun
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.pipeline import stage as stages
from unsupseg_cli.pipeline.stage import Call, once, settle

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

    from unsupseg_cli.artifacts.context import Context
    from unsupseg_cli.artifacts.identity import Identity
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.core.config import Config
    from unsupseg_cli.methods.declaration import MethodOptions
    from unsupseg_cli.training.launch import Precision

Work = Callable[["Fabric", Call, Draft], dict[str, Any]]
"""Trains in one of the processes; what the first one returns is the summary for the manifest."""

_NOTE = "trained"  # the part of a draft that processes of --devices leave finished
_TOKEN = ".together"  # a file of the draft by which the others see that they share its disk
_DISK_SECONDS = 20.0  # a network file system may show a new file late
_PREPARING, _FAILED = -1, -2  # what the first process says before it has a draft, or in place of one
_BEATS = 10  # how often it says that it prepares in the time after which it is given up
_LAST_WORD = 10.0  # seconds that it takes to say that it failed


@dataclass(frozen=True)
class Processes:
    """Which processes train: ``devices`` of them on ``device``, in a precision."""

    device: torch.device
    devices: int = 1
    precision: Precision = "32-true"
    unused_parameters: bool = False


def train_together(call: Call, draft: Draft, work: Work, processes: Processes) -> dict[str, Any]:
    """Train in this process, in several new ones, or with those that torchrun started; return the summary.

    Args:
        call: of the stage.
        draft: of its artifact.
        work: a function of the stage's module.
        processes: which ones.
    """
    from unsupseg_cli.training.launch import alone, launch, others_answer

    group = _joined(call, processes)
    if group is not None:
        with others_answer():
            group.begin(draft.folder)
            return work(group.fabric, call, draft)
    if processes.devices == 1:
        return work(alone(processes.device, processes.precision), call, draft)
    if not draft.is_done(_NOTE):
        launch(
            _train_in_child,
            work,
            _Sent(call.stage.name, call.config, call.context, call.options, dict(call.inputs), draft.folder),
            accelerator=processes.device.type,
            devices=processes.devices,
            precision=processes.precision,
            unused_parameters=processes.unused_parameters,
        )
    note = draft.note(_NOTE)
    draft.warnings += note["warnings"]
    summary: dict[str, Any] = note["summary"]
    return summary


def produce_together(
    call: Call, identity: Identity, work: Work, processes: Callable[[Call], Processes]
) -> tuple[Artifact | None, bool]:
    """Make or reuse an artifact; a process that torchrun started beside the first one helps, and returns None.

    Raises:
        UsageError: the processes do not share the disk of the workspace, or make other calls than the first.
    """
    group = _joined(call, processes(call)) if processes_of_torchrun() > 1 else None
    if group is None:
        return stages.produce(call, identity)
    from unsupseg_cli.training.launch import others_answer

    if group.fabric.is_global_zero:
        try:
            artifact, reused = stages.produce(call, identity)
        except BaseException:
            group.give_up()
            raise
        with others_answer():
            group.end()
        return artifact, reused
    folder = call.context.workspace.draft_folder(identity)
    with others_answer():
        if group.follow(folder):
            quiet = replace(call, context=replace(call.context, reporter=Silent()))
            work(group.fabric, quiet, Draft(folder))
    return None, False


class _Group:
    """The processes that torchrun started: the first one says when to begin, and until then that it prepares."""

    def __init__(self, fabric: Fabric) -> None:
        import torch.distributed as dist

        from unsupseg_cli.training import launch

        self.fabric, self.begun = fabric, False
        self._members = cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=launch.PATIENCE))
        self._ready, self._seconds_of_work = threading.Event(), _clock_of_this_thread()
        self._beat = threading.Thread(target=self._tell_of_life, daemon=True)
        if fabric.is_global_zero:
            self._beat.start()

    def begin(self, folder: Path) -> None:
        """Let the others train on a draft that they see too."""
        token = 1 + secrets.randbelow(2**60)
        (folder / _TOKEN).write_text(str(token), encoding="utf-8")
        self.begun = True
        self._say(token)
        self._require_common_disk(True, folder)

    def end(self) -> None:
        """Let the others go where there was nothing to do for them."""
        if not self.begun:
            self._say(0)

    def give_up(self) -> None:
        """Let the others end where this process, the first one, failed before they began."""
        self._ready.set()
        self._beat.join(_LAST_WORD)
        if not self.begun and not self._beat.is_alive():
            with suppress(RuntimeError):
                self._broadcast(_FAILED)

    def follow(self, folder: Path) -> bool:
        """Wait for the first process; return whether there is something to train."""
        while (token := self._broadcast(0)) == _PREPARING:
            pass
        if token == _FAILED:
            raise UnsupsegError(
                "The first of the processes that train together failed: what it says tells why."
            )
        if token == 0:
            return False
        end = time.monotonic() + _DISK_SECONDS
        while not (seen := _read(folder / _TOKEN) == str(token)) and time.monotonic() < end:
            time.sleep(0.1)
        self._require_common_disk(seen, folder)
        return True

    def _say(self, value: int) -> None:
        """Tell the others what they wait for; in the first process."""
        self._ready.set()
        self._beat.join()
        self._broadcast(value)

    def _tell_of_life(self) -> None:
        """Say now and then that this process prepares, unless its main thread did nothing since: so it may hang."""
        from unsupseg_cli.training import launch

        worked = -1.0
        with suppress(
            RuntimeError, OSError
        ):  # a process or thread that is gone is told of where it is needed
            while not self._ready.wait(launch.PATIENCE.total_seconds() / _BEATS):
                if (seconds := self._seconds_of_work()) > worked:
                    self._broadcast(_PREPARING)
                worked = seconds

    def _broadcast(self, value: int) -> int:
        """Return the value of the first process."""
        import torch
        import torch.distributed as dist

        told = torch.tensor(value)
        dist.broadcast(told, 0, group=self._members)
        return int(told)

    def _require_common_disk(self, seen: bool, folder: Path) -> None:
        import torch
        import torch.distributed as dist

        all_see = torch.tensor(int(seen))
        dist.all_reduce(all_see, dist.ReduceOp.MIN, group=self._members)
        if not int(all_see):
            raise UsageError(
                f"Not every process that torchrun started sees '{folder}' of the first one: give all of them the same "
                "command, and a --workspace on a disk that the machines share."
            )


@once
def _group_memory(call: Call) -> list[_Group]:
    return []


def _joined(call: Call, processes: Processes) -> _Group | None:
    """Return the processes that torchrun started, which this one joins on its first call."""
    from unsupseg_cli.training.launch import join, others_answer

    count, memory = processes_of_torchrun(), _group_memory(call)
    if count == 1:
        return None
    if not memory:
        if processes.devices not in (1, count):
            raise UsageError(
                f"torchrun started {count} processes, which --devices {processes.devices} contradicts: leave it out."
            )
        with others_answer():
            fabric = join(processes.device.type, processes.precision, processes.unused_parameters)
            memory.append(_Group(fabric))
    return memory[0]


@dataclass(frozen=True)
class _Sent:
    """What a new process needs to settle the same call."""

    stage: str
    config: Config
    context: Context
    options: MethodOptions | None
    inputs: Mapping[str, Artifact]
    folder: Path


def _train_in_child(fabric: Fabric, work: Work, sent: _Sent) -> None:
    from unsupseg_cli.pipeline.table import get_stage

    reporter = sent.context.reporter if fabric.is_global_zero else Silent()
    context = replace(sent.context, reporter=reporter, sources=Sources())
    call = settle(get_stage(sent.stage), sent.config, context, sent.options, sent.inputs)
    draft = Draft(sent.folder)
    summary = work(fabric, call, draft)
    context.sources.require_unchanged()
    if fabric.is_global_zero:
        files = [path for path in draft.folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        draft.finish(_NOTE, {"summary": summary, "warnings": draft.warnings}, files)


def _clock_of_this_thread() -> Callable[[], float]:
    """Return what tells the processor time of the thread that calls this; the time of day where no such clock is."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    return partial(time.clock_gettime, time.pthread_getcpuclockid(threading.get_ident()))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
