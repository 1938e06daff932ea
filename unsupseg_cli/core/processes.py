"""Processes that belong together: which one of torchrun's this is, and workers that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def processes_of_torchrun() -> int:
    """Return how many processes torchrun started together with this one: 1 where it did not."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _TORCHRUN) else 1


def is_first_process() -> bool:
    """Tell whether this is the first of them, or the only one."""
    return processes_of_torchrun() == 1 or os.environ["RANK"] == "0"


_SET_SIGNAL_OF_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of Linux' <sys/prctl.h>
_LOOK_EVERY = 1.0  # seconds


def end_with(parent: int) -> None:
    """Let this process be ended when the process ``parent``, which started it, ends in whatever way."""
    if not (sys.platform.startswith("linux") and _ask_kernel()):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before it was watched
        os._exit(1)


def _ask_kernel() -> bool:
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return False
    return int(prctl(_SET_SIGNAL_OF_PARENTS_DEATH, signal.SIGKILL, 0, 0, 0)) == 0


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)
