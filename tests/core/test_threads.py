"""Which cores a process may use, and how its threads wait."""

import os
import subprocess
import sys

import pytest

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.threads import prepare_threads, usable_cores


def test_cores_are_those_of_the_affinity():
    few = sorted(os.sched_getaffinity(0))[:1]
    code = "from unsupseg_cli.core.threads import usable_cores; print(usable_cores())"
    call = f"import os; os.sched_setaffinity(0, {few}); {code}"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1


@pytest.mark.parametrize(("given", "most"), [("1", 1), ("100000", None), ("", None), ("x", None)])
def test_slurm_gives_fewer_but_no_more(monkeypatch, given, most):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    cores = usable_cores()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
    assert usable_cores() == (most or cores)


@pytest.mark.parametrize(
    ("set_before", "count", "threads"),
    [
        ({}, 3, "3"),
        ({"OMP_NUM_THREADS": "2"}, None, "2"),
        ({"OMP_NUM_THREADS": "2"}, 3, "3"),
        ({}, None, None),
        ({"OMP_NUM_THREADS": " "}, None, None),
        ({"OMP_NUM_THREADS": "4,2"}, None, "4,2"),
        ({"OMP_NUM_THREADS": "many"}, 2, "2"),
    ],
)
def test_what_is_set_by_hand_holds(monkeypatch, set_before, count, threads):
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # as at the start of a command
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_before.items():
        monkeypatch.setenv(name, value)
    prepare_threads(count)
    assert os.environ["OMP_NUM_THREADS"] == (threads or str(usable_cores()))
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    prepare_threads()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize("given", ["0", "-1", "many", "99999999999999999999"])
def test_no_number_of_threads_is_refused(monkeypatch, call, given):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    with pytest.raises(UsageError, match=f"OMP_NUM_THREADS is '{given}'.* unset it, or give --threads"):
        prepare_threads()
    assert "unset it, or give --threads" in call("extract", "--dataset", "missing/", code=2)[1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "9999" in call("extract", "--threads", 10**20, code=2)[1]


def test_a_command_takes_as_many_threads_as_it_is_told(call):
    import torch

    before = torch.get_num_threads()
    try:
        call("extract", "--dataset", "missing/", "--threads", before + 2, code=2)
        assert torch.get_num_threads() == before + 2
    finally:
        torch.set_num_threads(before)
    assert "1" in call("extract", "--threads", 0, code=2)[1]
