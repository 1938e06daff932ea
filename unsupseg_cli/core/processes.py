"""Which of several processes this is, where torchrun started them: its environment variables tell."""

from __future__ import annotations

import os

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def processes_of_torchrun() -> int:
    """Return how many processes torchrun started together with this one: 1 where it did not."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _TORCHRUN) else 1


def is_first_process() -> bool:
    """Tell whether this is the first of them, or the only one."""
    return processes_of_torchrun() == 1 or os.environ["RANK"] == "0"
