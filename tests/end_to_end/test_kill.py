"""Each stage killed (SIGKILL) at three seeded points of its run and called again; see benchmarks/kill_matrix.py."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_matrix.py"
_SPEC = importlib.util.spec_from_file_location("kill_matrix", _SCRIPT)
kill_matrix = importlib.util.module_from_spec(_SPEC)
sys.modules["kill_matrix"] = kill_matrix
_SPEC.loader.exec_module(kill_matrix)

pytestmark = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    found = kill_matrix.Matrix(tmp_path_factory.mktemp("kill"))
    yield found
    found.driver.close()


@pytest.mark.parametrize("stage", kill_matrix.STAGES)
def test_killed_at_three_points_and_called_again_gives_the_same_digest(matrix, stage):
    changes = matrix.make(stage)["changes"]
    chance = random.Random(stage)
    for third in range(3):
        point = chance.randint(1 + third * changes // 3, (third + 1) * changes // 3)
        assert matrix.kill(stage, point=point) is None, f"killed before change {point} of {changes}"


def test_a_kill_is_a_kill(matrix, tmp_path):
    arguments = kill_matrix.command("extract", matrix.images, {})
    answer = matrix.driver.run(arguments, tmp_path, point=30)
    assert answer["code"] == -9
    assert list(tmp_path.glob("features/.partial-*"))
