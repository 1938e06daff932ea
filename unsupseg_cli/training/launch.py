"""Several processes, each on a device of its own, that do one piece of work together."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from typing import Any, Literal

from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from unsupseg_cli.core.errors import UnsupsegError, UsageError

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces each process otherwise

Precision = Literal["32-true", "bf16-mixed"]


def launch(
    run: Callable[..., None],
    *arguments: Any,
    accelerator: str,
    devices: int,
    precision: Precision = "32-true",
    unused_parameters: bool = False,
) -> None:
    """Call ``run(fabric, *arguments)`` in ``devices`` processes; ``fabric`` knows rank and device of each.

    Args:
        run: a function of a module; it and what it is given are pickled.
        arguments: passed on.
        accelerator: ``cpu``, ``cuda`` or ``mps``.
        devices: number of processes.
        precision: of modules that ``run`` sets up with ``fabric``.
        unused_parameters: whether a step may leave parameters of such a module without a gradient.

    Raises:
        UsageError: this machine has not as many devices.
        UnsupsegError: one of them failed; the others are ended.
    """
    others = set(multiprocessing.active_children())
    strategy = DDPStrategy(start_method="spawn", find_unused_parameters=unused_parameters)
    try:
        fabric = Fabric(accelerator=accelerator, strategy=strategy, devices=devices, precision=precision)
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--devices {devices} is not possible on '{accelerator}' here ({reason}).") from None
    try:
        fabric.launch(run, *arguments)
    except ProcessRaisedException as error:
        reason = str(error).strip().splitlines()[-1]
        raise UnsupsegError(reason.removeprefix(f"{UnsupsegError.__module__}.UnsupsegError: ")) from None
    except ProcessExitedException as error:
        raise UnsupsegError(
            f"One of the {devices} processes was ended from outside ({error}): when memory was short, take fewer "
            "--devices. The same call goes on where it was."
        ) from None
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()  # after Ctrl-C too: it would go on to its end otherwise
