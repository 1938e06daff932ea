"""Calls of stages on the actors of a Ray cluster: a device each, a stage that divides by --shard on all of them.

The driver, the process of the command, schedules and shows progress; the actors settle calls, since they know their
device, and work. They are the same calls as by hand: the workspace's locks and drafts keep them apart.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read by ray when it is imported: without them it tries for minutes to reach what is not there, and tells of it.
os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unsupseg_cli.artifacts.files import disk_errors
from unsupseg_cli.core.errors import NodeError, UnsupsegError, UsageError, reason_of
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.core.threads import prepare_threads
from unsupseg_cli.pipeline.relay import Board, Relay
from unsupseg_cli.pipeline.stage import perform, settle
from unsupseg_cli.pipeline.table import get_stage

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.context import Context
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.core.config import Config
    from unsupseg_cli.core.progress import Reporter
    from unsupseg_cli.methods.declaration import MethodOptions
    from unsupseg_cli.pipeline.stage import Stage

_REACH_SECONDS = 5.0  # for a connection to a port
_DISK_SECONDS = 20.0  # a network file system may show a new file late
_ROUND_SECONDS = 0.2  # between two looks at the progress
_REMARK_SECONDS = 30.0  # without any actor, after which the user is told what is waited for
_PATIENCE_SECONDS = 1800.0  # without any actor: a cloud's machine takes minutes to start
_MOST_TRIES = 3  # of one piece of work whose worker dies
_MOST_WORKERS = 16  # that decode images for one device


@dataclass(frozen=True)
class Job:
    """One call of a stage as it is sent to an actor."""

    stage: str
    config: Any
    context: Context
    options: MethodOptions | None = None
    inputs: Mapping[str, Artifact] | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        shard = getattr(self.config, "shard", None)
        return f"shard {shard} of `{self.stage}`" if shard else f"`{self.stage}`"


@dataclass(frozen=True)
class Node:
    """What an actor finds where it runs: versions by package, and what it sees of the driver's folders."""

    host: str
    versions: Mapping[str, str]
    sees_workspace: bool
    sees_folder: bool


class Worker:
    """The actor: one device, and ``cores`` of a node's."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        try:
            prepare_threads()
        except UsageError:  # of the node's own setting
            prepare_threads(max(1, cores))

    def look(self, folder: Path, token: Path | None) -> Node:
        """Go to the driver's folder, and tell whether it and the driver's file ``token``, if there is one, are here."""
        sees_folder = folder.is_dir()
        if sees_folder:
            os.chdir(folder)
        end = time.monotonic() + _DISK_SECONDS
        while not (sees := token is None or token.exists()) and time.monotonic() < end:
            time.sleep(0.1)
        return Node(platform.node(), versions_here(), sees, sees_folder)

    def settle(self, job: Job, queue: Queue) -> tuple[Job, bool]:
        """Return the job with its inputs and its precision, which depends on the device; and whether it is done."""
        job = self._here(job, queue)
        call = settle(get_stage(job.stage), job.config, job.context, job.options, job.inputs)
        identity = call.stage.identify(call)
        precision = identity.config.get("precision")  # none where tokens are read
        config = job.config.model_copy(update={"precision": precision}) if precision else job.config
        there = call.context.workspace.has(identity)
        return replace(job, config=config, options=call.options, inputs=dict(call.inputs)), there

    def perform(self, job: Job, queue: Queue) -> Artifact | None:
        """Do what the command does."""
        job = self._here(job, queue)
        return perform(get_stage(job.stage), job.config, job.context, options=job.options, inputs=job.inputs)

    def _here(self, job: Job, queue: Queue) -> Job:
        config = job.config
        if "workers" in type(config).model_fields and config.workers is None:
            config = config.model_copy(update={"workers": min(max(self.cores, 1), _MOST_WORKERS)})
        return replace(job, config=config, context=replace(job.context, reporter=Relay(queue, job.name)))


def versions_here() -> dict[str, str]:
    """Return the versions on which results depend; the kind of build (such as +cpu) does not count."""
    packages = {name: version(name).split("+")[0] for name in ("unsupseg", "torch")}
    return {"Python": ".".join(platform.python_version_tuple()[:2]), **packages}


@contextmanager
def connect(address: str | None) -> Iterator[RayExecutor]:
    """Yield what performs calls on a cluster: the one at an address, else that of $RAY_ADDRESS or of this machine.

    Raises:
        UsageError: it cannot be reached.
    """
    opened = not ray.is_initialized()
    if opened:
        _reach(address or os.environ.get("RAY_ADDRESS", ""))
        stop = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # of many classes, which ray does not list
            raise _unreachable(address, reason_of(error)) from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stop)  # ray puts one of its own in the place
    elif address not in (None, "auto", ray.get_runtime_context().gcs_address):
        raise UsageError(f"This process is connected to another Ray cluster than that at '{address}'.")
    crew = _Crew()
    try:
        yield RayExecutor(crew)
    except RayError as error:
        raise UnsupsegError(
            f"The Ray cluster was lost ({reason_of(error)}); the same call goes on where it was."
        ) from error
    finally:
        with suppress(RayError):
            crew.close()
        if opened:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raise UsageError where nothing answers at ``[ray://]HOST:PORT``."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # auto, local, or what ray refuses with its own words
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, reason_of(error)) from None


def _unreachable(address: str | None, reason: str) -> UsageError:
    where = f"at '{address}'" if address else "on this machine"
    return UsageError(
        f"No Ray cluster can be used {where} ({reason.rstrip('.')}): give --address HOST:PORT of its head, in a "
        "process on one of its nodes."
    )


class RayExecutor:
    """Performs calls on the actors of a crew."""

    def __init__(self, crew: _Crew) -> None:
        self._crew = crew

    def __call__(
        self,
        stage: Stage,
        config: Config,
        context: Context,
        *,
        options: MethodOptions | None = None,
        inputs: Mapping[str, Artifact] | None = None,
    ) -> Artifact | None:
        """Make or reuse the artifact of a call: in shards on all actors where the stage divides, else on one.

        Raises:
            UsageError: the call does not fit, or a node does not fit the driver.
            UnsupsegError: the work failed, or ended its workers.
        """
        values: Any = config
        if getattr(values, "device", "auto") not in ("auto", "cpu", "cuda"):
            raise UsageError(
                f"--device {values.device} names a device of this machine: with --executor give auto, cpu or cuda."
            )
        local = config.model_copy(
            update={"executor": None, "address": None, "devices": 1} if stage.divides else {}
        )
        job = Job(stage.name, local, replace(context, reporter=Silent()), options, inputs)
        crew, reporter = self._crew, context.reporter
        if not stage.divides:
            crew.ask(1, getattr(values, "device", "auto"), context)
            return crew.perform([job], reporter)[0]
        if context.force:
            raise UsageError("--executor and --force do not go together: remove the old artifact first.")
        crew.ask(1, values.device, context)
        job, there = crew.settle(job, reporter)
        if there:
            return crew.perform([job], reporter)[0]
        shards = crew.ask(
            values.devices if "devices" in config.model_fields_set else None, values.device, context
        )
        numbers = range(1, shards + 1)
        jobs = [
            replace(job, config=job.config.model_copy(update={"shard": f"{number}/{shards}"}))
            for number in numbers
        ]
        made = [artifact for artifact in crew.perform(jobs, reporter) if artifact is not None]
        # Without any, another call made blocks of it meanwhile: one without shards waits for that, and joins all.
        artifact = made[0] if made else crew.perform([job], reporter)[0]
        crew.keep_one()
        return artifact


class _Crew:
    """The actors: those that were asked for, those that came, and what each one does."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._coming: dict[Any, Any] = {}  # by the reference of what they see
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[int, Any]] = {}
        self._kind, self._failed = "", 0
        self._token: Path | None = None

    def ask(self, count: int | None, device: str, context: Context) -> int:
        """Ask for as many actors with a device each, default: all that the cluster has; return how many."""
        kind = device if device != "auto" else "cuda" if _has_gpus() else "cpu"
        if kind != self._kind:
            self._dismiss([*self._idle, *self._coming.values()])
            self._idle, self._coming, self._kind = [], {}, kind
        self._show(context)
        cores, present = _share(kind == "cuda")
        count = count or max(present, 1)
        for _ in range(count - len(self._idle) - len(self._coming)):
            self._send_for(cores)
        return count

    def perform(self, jobs: Sequence[Job], reporter: Reporter) -> list[Artifact | None]:
        """Do each job on an actor."""
        return self._do("perform", jobs, reporter)

    def settle(self, job: Job, reporter: Reporter) -> tuple[Job, bool]:
        """Return a job as an actor would do it, and whether it is done."""
        settled: tuple[Job, bool] = self._do("settle", [job], reporter)[0]
        return settled

    def _do(self, method: str, jobs: Sequence[Job], reporter: Reporter) -> list[Any]:
        """Return what a method of the actors returns of each job, and show the progress meanwhile."""
        board, results = Board(self._queue, reporter, [job.name for job in jobs]), dict[int, Any]()
        board.follow(self._rounds(method, jobs, results, reporter))
        return [results[number] for number in range(len(jobs))]

    def keep_one(self) -> None:
        """Give back the devices of all actors but one."""
        self._dismiss([*self._idle[1:], *self._coming.values()])
        self._idle, self._coming = self._idle[:1], {}

    def close(self) -> None:
        """End the actors, whatever they do."""
        if self._token is not None:
            self._token.unlink(missing_ok=True)
        self._dismiss([*self._idle, *self._coming.values(), *(worker for _, worker in self._busy.values())])
        self._queue.shutdown(force=True)

    def _rounds(
        self, method: str, jobs: Sequence[Job], results: dict[int, Any], reporter: Reporter
    ) -> Iterator[list[str]]:
        """Hand out the jobs to those that have come; yield now and then which are worked at, until all are done."""
        waiting, tries = deque(range(len(jobs))), [0] * len(jobs)
        working, remarked = time.monotonic(), False
        while len(results) < len(jobs):
            while waiting and self._idle:
                number, worker = waiting.popleft(), self._idle.pop()
                tries[number] += 1
                self._busy[getattr(worker, method).remote(jobs[number], self._queue)] = (number, worker)
            done, _ = ray.wait([*self._busy, *self._coming], num_returns=1, timeout=_ROUND_SECONDS)
            for reference in done:
                if reference in self._coming:
                    self._welcome(reference, jobs[0].context)
                    continue
                number, worker = self._busy.pop(reference)
                try:
                    results[number] = ray.get(reference)
                    self._idle.append(worker)
                except RayTaskError as error:
                    raise _own_error(error) from None
                except RayError:  # its process or its node is gone
                    reporter.info(f"the worker of {jobs[number].name} died: another one goes on with it")
                    if tries[number] == _MOST_TRIES:
                        raise UnsupsegError(
                            f"The work of {jobs[number].name} ended {_MOST_TRIES} workers, perhaps for want of memory: "
                            "give a smaller --batch-size. The same call goes on where it was."
                        ) from None
                    waiting.appendleft(number)
                    self._send_for(_share(self._kind == "cuda")[0])
            if self._busy or self._idle:
                working, remarked = time.monotonic(), False
            alone = time.monotonic() - working
            if alone > _PATIENCE_SECONDS:
                raise UnsupsegError(
                    f"No actor came in {_PATIENCE_SECONDS / 60:.0f} minutes: the cluster has no free {self._device}."
                )
            if alone > _REMARK_SECONDS and not remarked:
                remarked = True
                reporter.info(f"the cluster has no free {self._device} yet: waiting for one")
            yield [jobs[number].name for number, _ in self._busy.values()]

    @property
    def _device(self) -> str:
        return "GPU" if self._kind == "cuda" else "cores"

    def _send_for(self, cores: int) -> None:
        options = {"num_cpus": cores, "num_gpus": int(self._kind == "cuda")}
        worker = ray.remote(Worker).options(**options).remote(cores)
        self._coming[worker.look.remote(Path.cwd(), self._token)] = worker

    def _welcome(self, reference: Any, context: Context) -> None:
        """Let an actor that has come work; raises UsageError where its node does not fit the driver."""
        worker = self._coming.pop(reference)
        try:
            node: Node = ray.get(reference)
        except RayError as error:
            self._failed += 1
            reason = str(error).strip().splitlines()[-1]
            if "ModuleNotFoundError" in str(error) or self._failed == _MOST_TRIES:
                raise NodeError(
                    f"An actor could not begin ({reason}): install unsupseg with the extra ray on every node, in the "
                    "versions of this machine."
                ) from None
            self._send_for(_share(self._kind == "cuda")[0])
            return
        require_fitting(node, context.workspace.root)
        self._idle.append(worker)

    def _show(self, context: Context) -> None:
        """Write the file by which the actors see that they have the workspace before them."""
        if context.workspace.shared_folder is None:
            return  # a bucket
        root = context.workspace.shared_folder.absolute()
        if self._token is not None and self._token.parent == root:
            return
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            self._token = root / f".seen-{secrets.token_hex(8)}"
            self._token.touch()

    @staticmethod
    def _dismiss(workers: Sequence[Any]) -> None:
        for worker in workers:
            ray.kill(worker)


def require_fitting(node: Node, workspace: Path) -> None:
    """Raise NodeError where a node has other versions than this machine, or does not see its folders."""
    for name, here in versions_here().items():
        if (there := node.versions.get(name)) != here:
            raise NodeError(
                f"Node '{node.host}' has {name} {there}, and this machine {here}: install the same version on every "
                "node. Nothing was published."
            )
    if not node.sees_workspace:
        raise NodeError(
            f"Node '{node.host}' does not see the workspace '{workspace}' of this machine: give a --workspace on a "
            "disk that all nodes share."
        )
    if not node.sees_folder:
        raise NodeError(
            f"Node '{node.host}' has no folder '{Path.cwd()}', in which this command was called: call it in a folder "
            "that all nodes share."
        )


def _has_gpus() -> bool:
    return bool(ray.cluster_resources().get("GPU"))


def _share(gpus: bool) -> tuple[int, int]:
    """Return the cores of each actor, and how many actors the nodes of the cluster have room for.

    A device is a GPU with its share of the node's cores, or all the cores of the smallest node.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus:
        devices = [(int(node["GPU"]), int(node.get("CPU", 0))) for node in nodes if node.get("GPU", 0) >= 1]
        return min((cores // count for count, cores in devices), default=1), sum(
            count for count, _ in devices
        )
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    share = min(cores, default=1)
    return share, sum(count // share for count in cores)


def _own_error(error: RayTaskError) -> UnsupsegError:
    """Return the error of the work on an actor as it would be in this process."""
    cause = error.cause
    if isinstance(cause, UnsupsegError):
        return type(cause)(str(cause))
    return UnsupsegError(f"The work on an actor failed: {type(cause).__name__}: {reason_of(cause)}")
