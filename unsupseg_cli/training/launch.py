"""Several processes, each on a device of its own, that do one piece of work together: started here, or by torchrun."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from multiprocessing.connection import wait
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from unsupseg_cli.core.errors import UnsupsegError, UsageError

# A kernel's gradient may lie otherwise in memory than the others of its bucket; copying it takes little.
warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces each process otherwise
logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # and each that it ends

Precision = Literal["32-true", "bf16-mixed"]

PATIENCE = timedelta(minutes=15)
"""How long a process waits for the others at a step before it gives them up."""

_SIGNS_OF_LOSS = ("connection closed", "connection reset", "timed out", "broken pipe", "gloo", "nccl")


def alone(device: torch.device, precision: Precision = "32-true") -> Fabric:
    """Return the Fabric of a process that trains alone on a device."""
    indexed = device.index is not None and device.type != "cpu"
    return Fabric(accelerator=device.type, devices=[device.index] if indexed else 1, precision=precision)


def launch(
    run: Callable[..., None],
    *arguments: Any,
    accelerator: str,
    devices: int,
    precision: Precision = "32-true",
    unused_parameters: bool = False,
    patience: timedelta = PATIENCE,
) -> None:
    """Call ``run(fabric, *arguments)`` in ``devices`` processes; ``fabric`` knows rank and device of each.

    Args:
        run: a function of a module; it and what it is given are pickled.
        arguments: passed on.
        accelerator: ``cpu``, ``cuda`` or ``mps``.
        devices: number of processes.
        precision: of modules that ``run`` sets up with ``fabric``.
        unused_parameters: whether a step may leave parameters of such a module without a gradient.
        patience: how long the processes wait for each other.

    Raises:
        UsageError: this machine has not as many devices; or one of the processes raised it.
        UnsupsegError: one of them failed, was ended or did not answer; the others are ended.
    """
    others = set(multiprocessing.active_children())
    strategy = DDPStrategy(
        start_method=_start_method(), find_unused_parameters=unused_parameters, timeout=patience
    )
    fabric = _open(strategy, accelerator, devices, 1, precision)
    try:
        # Bound, since Fabric looks for modules in the arguments and refuses frozen dataclasses on its way.
        environment = {name: value for name, value in os.environ.items() if name not in _OF_A_PROCESS}
        work = pickle.dumps((run, arguments))
        fabric.launch(partial(_guarded, work=work, patience=patience, environment=environment))
    except ProcessRaisedException as error:
        raise _own_error(str(error).strip().splitlines()[-1]) from None
    except ProcessExitedException as error:
        raise UnsupsegError(
            f"One of the {devices} processes was ended from outside ({error}): when memory was short, take fewer "
            "--devices. The same call goes on where it was."
        ) from None
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()  # after Ctrl-C too: it would go on to its end otherwise


def join(accelerator: str, precision: Precision = "32-true", unused_parameters: bool = False) -> Fabric:
    """Join the processes that torchrun started, on one machine or on several.

    Raises:
        UsageError: this machine has not as many devices as there are processes on it.
        UnsupsegError: the others do not answer.
    """
    here, everywhere = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    strategy = DDPStrategy(
        cluster_environment=TorchElasticEnvironment(),
        find_unused_parameters=unused_parameters,
        timeout=PATIENCE,
    )
    fabric = _open(strategy, accelerator, here, everywhere // here, precision)
    with others_answer():
        fabric.launch()
    return fabric


@contextmanager
def others_answer(patience: timedelta = PATIENCE) -> Iterator[None]:
    """Turn the error of a process that waits in vain for another one into an UnsupsegError."""
    try:
        yield
    except RuntimeError as error:
        if "find_unused_parameters" in str(error):
            raise UnsupsegError(
                "A step left parameters of the trained module without a gradient, which several processes must know "
                "beforehand: the trainer says so by `unused_parameters = True`."
            ) from None
        lost = any(sign in str(error).lower() for sign in _SIGNS_OF_LOSS)
        if not (isinstance(error, dist.DistError) or (dist.is_initialized() and lost)):
            raise
        raise UnsupsegError(
            "Another of the processes that train together ended, or did not answer for "
            f"{patience.total_seconds():.0f} seconds. The same call goes on where it was."
        ) from error


def _start_method() -> Literal["forkserver", "spawn"]:
    """Return how processes are started: by a server that has imported what they need, where there is one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload(_PRELOADED)
    return "forkserver"


_PRELOADED = ["torch._dynamo", "torchvision", "timm", __name__]  # a process would take seconds to import them


def _open(strategy: DDPStrategy, accelerator: str, devices: int, nodes: int, precision: Precision) -> Fabric:
    try:
        return Fabric(
            accelerator=accelerator, strategy=strategy, devices=devices, num_nodes=nodes, precision=precision
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--devices {devices} is not possible on '{accelerator}' here ({reason}).") from None


_OF_A_PROCESS = {
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "GROUP_RANK",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
}
"""Variables by which the processes find each other."""


def _guarded(
    fabric: Fabric,
    work: bytes,
    patience: timedelta,
    environment: dict[str, str],
) -> None:
    # The server that started this process may be older than credentials that even the arguments need to be read.
    os.environ.update(environment)
    run, arguments = pickle.loads(work)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with others_answer(patience):
        run(fabric, *arguments)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: the server would let it go on alone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _own_error(line: str) -> UnsupsegError:
    """Return the error that the last line of a traceback tells of."""
    for kind in (UsageError, UnsupsegError):
        prefix = f"{kind.__module__}.{kind.__name__}: "
        if line.startswith(prefix):
            return kind(line.removeprefix(prefix))
    return UnsupsegError(re.sub(r"^unsupseg_cli[\w.]*: ", "", line))  # of a kind of error of its own
