"""Every stage, killed without warning at seeded moments and called again, gives the same bytes."""

import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.main import app

sys.path.insert(0, str(Path(__file__).parent))
from killing import Child

POINTS = int(os.environ.get("UNSUPSEG_KILL_POINTS", "3"))
QUIET = ["--workers", "0", "--device", "cpu"]
STAGES = {
    "extract": ["extract", "--size", "32", *QUIET],
    "graph": ["graph", "--neighbors", "3", "--device", "cpu"],
    "pseudolabel kmeans": ["pseudolabel", "--classes", "3", "--set", "restarts=1", *QUIET],
    "pseudolabel primaps": [
        *("pseudolabel", "--method", "primaps", "--classes", "3", "--keep", "soft"),
        *("--sheet", "2", *QUIET),
    ],
    "train kmeans": ["train", "--method", "kmeans", "--set", "steps=205", "--set", "restarts=1", *QUIET],
    "train primaps": ["train", "--method", "primaps", "--set", "epochs=210", *QUIET],
    "train stego": [
        *("train", "--method", "stego", "--classes", "3", "--set", "steps=105", "--set", "restarts=1"),
        *("--set", "batch=4", "--set", "codes=4", "--set", "feature_samples=3", *QUIET),
    ],
    "predict": ["predict", "--keep", "scores", *QUIET],
    "refine": ["refine", "--iterations", "2", "--workers", "0"],
    "refine pseudolabels": ["refine", "--iterations", "2", "--workers", "0", "--sheet", "2"],
    "eval": ["eval", "--sheet", "2", *QUIET],
    "pretrain": [
        *("pretrain", "--arch", "vit_tiny_conv16", "--steps", "3", "--batch", "2", "--size", "32"),
        *("--final-size", "32", "--points", "4", "--head-hidden", "8", "--head-dim", "8", "--device", "cpu"),
    ],
}


def call(arguments):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exit_code:
        print(result.output, file=sys.stderr)
    return result.exit_code


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Labelled pictures of two sizes, and a workspace with an artifact of every stage."""
    root = tmp_path_factory.mktemp("kill")
    for number in range(8):
        label = np.repeat(np.arange(3), 16)[None].repeat(32, 0).astype(np.uint8)[:, : 48 - 16 * (number % 2)]
        label = np.roll(label, 5 * number, 1)
        image = np.array([[200, 60, 40], [30, 90, 210], [90, 180, 60]], np.uint8)[label]
        for kind, pixels in (("images", image), ("labels", label)):
            path = root / "photos" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (root / "photos" / "classes.txt").write_text("a\nb\nc\n")
    made = Made(root)
    for stage in STAGES:
        made.make(stage)
    return made


class Made:
    """The workspace of an undisturbed run, and which artifact each stage made."""

    def __init__(self, root):
        self.root, self.artifacts = root, {}

    def arguments(self, stage, space):
        """Return the call of a stage in a workspace, with its inputs named."""
        photos = f"{self.root / 'photos'}/"
        ids = {name: artifact.id for name, artifact in self.artifacts.items()}
        inputs = {
            "extract": ["--dataset", photos],
            "train kmeans": ["--pseudolabels", ids.get("pseudolabel kmeans")],
            "train primaps": ["--pseudolabels", ids.get("pseudolabel primaps")],
            "train stego": ["--features", ids.get("extract"), "--graph", ids.get("graph")],
            "predict": [f"{photos}images", "--model", ids.get("train kmeans")],
            "refine": ["--predictions", ids.get("predict")],
            "refine pseudolabels": ["--pseudolabels", ids.get("pseudolabel primaps")],
            "eval": ["--model", ids.get("train kmeans"), "--dataset", photos],
            "pretrain": ["--images", f"{photos}images"],
        }
        return [*STAGES[stage], *inputs.get(stage, []), "--workspace", space, "-q"]

    def make(self, stage):
        space = self.root / "whole"
        before = {artifact.id for artifact in Workspace(space).artifacts()}
        assert call(self.arguments(stage, space)) == 0
        (self.artifacts[stage],) = [one for one in Workspace(space).artifacts() if one.id not in before]

    def copy_without(self, stage, space):
        """Return a copy of the workspace in which the stage has not run."""
        shutil.copytree(self.root / "whole", space)
        artifact = self.artifacts[stage]
        shutil.rmtree(space / artifact.path.relative_to(self.root / "whole"))
        return space


def results(artifact):
    return {name: output.sha256 for name, output in artifact.manifest.outputs.items() if output.result}


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_called_again_gives_the_same_bytes(place, stage, tmp_path):
    expected = place.artifacts[stage]
    counted = place.copy_without(stage, tmp_path / "counted")
    whole = Child(lambda: call(place.arguments(stage, counted)), counted)
    assert whole.code == 0
    assert whole.changes > 10
    moments = random.Random(stage).sample(range(1, whole.changes + 1), POINTS)
    for moment in moments:
        space = place.copy_without(stage, tmp_path / f"at-{moment}")
        others = {artifact.id for artifact in Workspace(space).artifacts()}
        killed = Child(lambda space=space: call(place.arguments(stage, space)), space, at=moment)
        assert killed.killed, f"alive after change {moment} of {whole.changes}"
        survivors = list(Workspace(space).artifacts())
        assert {artifact.id for artifact in survivors} in (others, others | {expected.id})
        assert Workspace(space).damaged() == []
        assert [problem for one in survivors for problem in Workspace(space).verify(one)] == []
        again = Child(lambda space=space: call(place.arguments(stage, space)), space)
        assert again.code == 0
        made = Workspace(space).get(expected.id)
        assert results(made) == results(expected), f"after change {moment} of {whole.changes}"
        assert Workspace(space).leftovers() == []
        assert list((space / ".locks").glob("*.holder")) == []
