"""Memory that a process frees stays with it, so that the next layer of a network need not ask the system again."""

import os
import subprocess
import sys

import pytest

from unsupseg_cli import ExtractConfig, extract
from unsupseg_cli.core.errors import UsageError

# What layers do: take some arrays, free them all, and again.
_LAYERS = """
import resource
import numpy as np
from unsupseg_cli.core.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
for layer in range(30):
    if layer == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(3 << 20, np.uint8) for _ in range(6)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
_PAGES = 20 * 6 * (3 << 20) // 4096  # of all that is taken after the first ten layers


def _faults(keep, **environment):
    """Return how many pages the system had to hand out."""
    call = [sys.executable, "-c", _LAYERS.format(keep=keep)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(call, env=clean | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_what_was_freed_is_not_taken_from_the_system_again():
    assert _faults(keep=False) > _PAGES / 2
    assert _faults(keep=True) < _PAGES / 100
    assert _faults(keep=True, MALLOC_TRIM_THRESHOLD_="131072") > _PAGES / 2  # set by hand


def test_every_stage_keeps_what_it_freed(monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr("unsupseg_cli.pipeline.stage.keep_freed_memory", lambda: kept.append(True))
    with pytest.raises(UsageError):
        extract(ExtractConfig(dataset=f"{tmp_path}/", backbone="untrained", device="cpu"))
    assert kept
