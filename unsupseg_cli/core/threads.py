"""Cores that this process may use, and threads that leave them to other processes while they wait."""

from __future__ import annotations

import os
import sys


def usable_cores() -> int:
    """Return how many cores this process may use: by its affinity, the quota of its control group, and SLURM."""
    import joblib

    cores = int(joblib.cpu_count())
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(cores, int(given)) if given.isdecimal() and int(given) else cores


def prepare_threads(count: int | None = None) -> None:
    """Set the threads of a process that has not imported torch: ``count``, else OMP_NUM_THREADS, else its cores.

    Between two pieces of work threads sleep instead of spinning (OMP_WAIT_POLICY, unless it is set): spinning threads
    take the cores from those that other processes have work for, and that this process waits for
    (`benchmarks/threads.py`).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
    elif "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    if count is not None and "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)
