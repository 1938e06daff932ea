"""Blocks of the documents that only a shell can run, as they stand but for their length."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from fixtures.pictures import noise

from unsupseg_cli.artifacts.workspace import Workspace

ROOT = Path(__file__).parents[2]
SHORT = """
workers = 0
[extract]
backbone = "untrained"
size = 64
[pretrain]
steps = 2
batch = 2
"""


@pytest.fixture
def shell(tmp_path, command_folder):
    """Run lines in an empty folder where everything is short; returns the workspace."""
    path = f"{command_folder}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "UNSUPSEG_WORKSPACE"}
    (tmp_path / "unsupseg.toml").write_text(SHORT)

    def run(block):
        done = subprocess.run(
            ["bash", "-e", "-c", block],
            cwd=tmp_path,
            env={**environment, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Workspace(tmp_path / "unsupseg-workspace")

    return run


def first_block(page):
    """Return the first shell block of a page."""
    return re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)[0]


@pytest.mark.slow
def test_four_processes_of_the_page_on_scaling_publish_one_artifact(shell, tmp_path):
    noise(tmp_path / "photos", {f"{number}.png": (64, 64) for number in range(6)})
    (features,) = shell(first_block("scaling.md")).artifacts("features")
    assert json.loads((features.path / "manifest.json").read_text())["summary"]["images"] == 6


@pytest.mark.slow
def test_the_two_commands_behind_tiny_train_a_backbone_from_another(shell, tmp_path):
    for folder in ("streets", "deep-photo"):
        noise(tmp_path / "CORPUS" / folder, {f"{number}.png": (96, 96) for number in range(4)})
    block = first_block("tiny.md").replace("--steps 4000", "--steps 2")
    made = list(shell(block).artifacts("backbone"))
    second = max(made, key=lambda backbone: backbone.manifest.config["seed"])
    assert len(made) == 2
    assert second.manifest.config["start"]
