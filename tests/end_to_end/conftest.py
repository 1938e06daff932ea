"""What the tests of kills, faults and outputs share: every call of every stage and of every part of a method."""

import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path

import command_server
import pytest


@cache
def load_kill_matrix():
    """Return the module benchmarks/kill_matrix.py."""
    path = Path(__file__).parents[2] / "benchmarks" / "kill_matrix.py"
    spec = importlib.util.spec_from_file_location("kill_matrix", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_matrix"] = module
    spec.loader.exec_module(module)
    return module


def pytest_generate_tests(metafunc):
    """Give a test with the argument ``every_call`` each call that the tables of stages and methods have."""
    if "every_call" in metafunc.fixturenames:
        metafunc.parametrize("every_call", list(load_kill_matrix().stages()))


@pytest.fixture(scope="session")
def kill_matrix():
    """The module benchmarks/kill_matrix.py."""
    return load_kill_matrix()


@pytest.fixture(scope="session")
def matrix(kill_matrix, tmp_path_factory):
    """Small pictures, a process that runs calls in children, and artifacts of undisturbed runs, to be read only."""
    found = kill_matrix.Matrix(tmp_path_factory.mktemp("matrix"))
    yield found
    found.driver.close()


@pytest.fixture(scope="session")
def command_folder(tmp_path_factory):
    """A folder with the programs ``unsupseg`` and ``python``, whose libraries a process has loaded before."""
    folder = tmp_path_factory.mktemp("bin")
    arguments = [sys.executable, str(Path(command_server.__file__)), str(folder / "socket")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "ready\n"
        for name in ("unsupseg", "python"):
            command_server.write_client(folder / name, folder / "socket")
        yield folder
        server.terminate()
