"""What the tests of kills and faults share."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kill_matrix():
    """The module benchmarks/kill_matrix.py."""
    path = Path(__file__).parents[2] / "benchmarks" / "kill_matrix.py"
    spec = importlib.util.spec_from_file_location("kill_matrix", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_matrix"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def matrix(kill_matrix, tmp_path_factory):
    """Small pictures, a process that runs calls in children, and the artifacts of undisturbed runs."""
    found = kill_matrix.Matrix(tmp_path_factory.mktemp("matrix"))
    yield found
    found.driver.close()
