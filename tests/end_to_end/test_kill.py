"""Each stage killed (SIGKILL) at three seeded points of its run and called again; see benchmarks/kill_matrix.py."""

import os
import random

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

STAGES = (
    "extract",
    "extract-ragged",
    "extract-hdf5",
    "graph",
    "pseudolabel-kmeans",
    "pseudolabel-primaps",
    "train-kmeans",
    "train-primaps",
    "train-stego",
    "predict",
    "refine",
    "eval",
    "pretrain",
)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_three_points_and_called_again_gives_the_same_digest(matrix, stage):
    changes = matrix.make(stage)["changes"]
    chance = random.Random(stage)
    for third in range(3):
        point = chance.randint(1 + third * changes // 3, (third + 1) * changes // 3)
        assert matrix.kill(stage, point=point) is None, f"killed before change {point} of {changes}"


def test_every_stage_of_the_script_is_killed_here(kill_matrix):
    assert kill_matrix.STAGES == STAGES


def test_a_kill_is_a_kill(kill_matrix, matrix, tmp_path):
    arguments = kill_matrix.command("extract", matrix.images, {})
    answer = matrix.driver.run(arguments, tmp_path, point=30)
    assert answer["code"] == -9
    assert list(tmp_path.glob("features/.partial-*"))
