"""Cores that this process may use, and threads that leave them to other processes while they wait."""

from __future__ import annotations

import os
import re
import sys

from unsupseg_cli.core.errors import UsageError


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

    Raises:
        UsageError: OMP_NUM_THREADS is no number of threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not (given := os.environ.get("OMP_NUM_THREADS", "").strip()):
        os.environ.pop("OMP_NUM_THREADS", None)
    elif count is None and not re.fullmatch(
        r"0*[1-9]\d{0,3}( *, *[1-9]\d{0,3})*", given
    ):  # one for each level
        raise UsageError(f"OMP_NUM_THREADS is '{given}', no number of threads: unset it, or give --threads.")
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
    elif "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    if count is not None and "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)
