"""Each stage killed (SIGKILL) at three seeded points of its run and called again; see benchmarks/kill_matrix.py."""

import os
import random
import shutil
import sys

import pytest

from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.console import TerminalReporter
from unsupseg_cli.cli.main import main
from unsupseg_cli.contents.features import FeatureSet

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def test_killed_at_three_points_and_called_again_gives_the_same_digest(matrix, every_call):
    changes = matrix.make(every_call)["changes"]
    chance = random.Random(every_call)
    for third in range(3):
        point = chance.randint(1 + third * changes // 3, (third + 1) * changes // 3)
        assert matrix.kill(every_call, point=point) is None, f"killed before change {point} of {changes}"


def test_a_kill_is_a_kill(kill_matrix, matrix, tmp_path):
    arguments = kill_matrix.command("extract", matrix.images, {})
    answer = matrix.driver.run(arguments, tmp_path, point=30)
    assert answer["code"] == -9
    assert list(tmp_path.glob("features/.partial-*"))


def test_a_kill_between_the_renames_of_force_hides_no_artifact(kill_matrix, matrix, tmp_path):
    """The moment is found by halving: up to the second rename the draft is there, beyond it is not."""
    arguments = [*kill_matrix.command("extract", matrix.images, {}), "--force"]
    matrix.make("extract")
    name, space = matrix.made["extract"], tmp_path / "space"
    features = sorted(one.id for one in Workspace(matrix.space).artifacts("features"))
    before, after = 1, matrix.driver.run(arguments, _copy(matrix.space, space))["changes"]
    seen = set()
    while after - before > 1:
        point = (before + after) // 2
        assert matrix.driver.run(arguments, _copy(matrix.space, space), point=point)["code"] == -9
        drafts = [one for one in space.glob("features/.partial-*") if "retired" not in one.name]
        before, after = (point, after) if drafts else (before, point)
        workspace = Workspace(space)
        artifact = workspace.get(name)
        assert sorted(one.id for one in workspace.artifacts("features")) == features
        assert workspace.verify(artifact) == []
        assert artifact.manifest.digest == matrix.digests["extract"]
        assert len(FeatureSet(artifact)) == 6
        seen.add((space / "features" / name).exists())
    assert seen == {True, False}  # False: between the renames
    assert matrix.driver.run(arguments, _copy(matrix.space, space), point=before)["code"] == -9
    assert matrix.driver.run(arguments[:-1], space)["code"] == 0
    assert Workspace(space).get(name).path == space / "features" / name


def test_a_kill_in_a_pass_over_all_tokens_gives_the_same_digest(kill_matrix, matrix, tmp_path):
    matrix.make("extract")
    made = {"extract": matrix.made["extract"]}
    arguments = [*kill_matrix.command("pseudolabel-kmeans", matrix.images, made), "--set", "sample=all"]

    def digest(space):
        return Workspace(space).current("pseudolabels").manifest.digest

    whole = _copy(matrix.space, tmp_path / "whole")
    changes, expected = matrix.driver.run(arguments, whole)["changes"], digest(whole)
    passes = Workspace(whole).current("pseudolabels").manifest.summary["passes"]
    notes = 0
    for point in range(1, changes, max(1, changes // 6)):
        space = _copy(matrix.space, tmp_path / "space")
        assert matrix.driver.run(arguments, space, point=point)["code"] == -9
        notes = max(notes, len(list(space.glob("pseudolabels/.partial-*/done/k-means-pass-*"))))
        assert matrix.driver.run(arguments, space)["code"] == 0
        assert digest(space) == expected, f"killed before change {point} of {changes}"
    assert notes == passes > 0


def _copy(source, target):
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=os.link)
    for name in ("current.json", "digests.json"):
        (target / name).unlink(missing_ok=True)
    return target


PHASES = {
    "graph": ["graph"],
    "import-masks": ["check label maps", "import-masks"],
    "pretrain": ["decode", "pretrain"],
    "pseudolabel-context": ["read tokens", "k-means, 3 centres", "read cls of regions", "pseudolabel"],
    "pseudolabel-kmeans": ["read tokens", "k-means, 3 centres", "pseudolabel"],
    "pseudolabel-maskdistill-clusters": ["tokens of masks", "k-means, 2 centres: starts", "pseudolabel"],
    "pseudolabel-spectral": ["read tokens", "neighbours", "k-means, 3 centres", "pseudolabel"],
    "pseudolabel-transfgu": ["read cls of regions", "k-means, 3 centres: starts", "pseudolabel"],
    "scan": ["read tokens", "number of classes"],
    "train-kmeans": ["read tokens", "starts", "train", "judge starts"],
    "train-primaps": ["read tokens", "k-means, 3 centres", "train", "read tokens"],
    "train-stego": ["train", "read tokens", "clusters of codes", "judge probes"],
    "classes": [],
}


def test_every_call_tells_the_phases_of_its_work(kill_matrix, matrix, every_call, monkeypatch):
    """What grows with the collection is counted, whichever phase of a call it is in; none is silent."""
    matrix.make(every_call)
    phases = []

    def track(self, items, description, total=None, done=0):
        for count, item in enumerate(items, done + 1):
            yield item
            phases.append((description, count, total))

    monkeypatch.setattr(TerminalReporter, "track", track)
    arguments = kill_matrix.command(every_call, matrix.images, matrix.made)
    monkeypatch.setattr(sys, "argv", ["unsupseg", *arguments, "-w", str(matrix.space), "--force"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    ends = [name for name, count, total in phases if count == total]
    for phase in PHASES.get(every_call, [kill_matrix.stages()[every_call][0]]):
        assert phase in ends, f"told were {ends}"
        ends = ends[ends.index(phase) :]
