"""samples/slurm: the chain as jobs, run by a stand-in for `sbatch`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unsupseg_cli.artifacts.workspace import Workspace

SUBMIT = Path(__file__).parents[2] / "samples" / "slurm" / "submit.sh"
STAND_IN = Path(__file__).with_name("sbatch.py")
CHAIN = ["extract", "pseudolabel", "train", "predict", "eval"]

SHARD = """#!/usr/bin/env bash
if [ -e "$STAND_IN_SLURM/broken-node" ] && [ "${{SLURM_ARRAY_TASK_ID:-}}" = 2 ]; then exit 1; fi
exec {command} "$@"
"""
"""The command, which fails in task 2 of an array while a file says so."""


@pytest.fixture
def cluster(tmp_path, command_folder):
    """Submit the chain; returns (stdout, the state of each job of this submission by name)."""
    folder, programs = tmp_path / "jobs", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    (programs / "sbatch").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    (programs / "unsupseg").write_text(SHARD.format(command=command_folder / "unsupseg"))
    for program in programs.iterdir():
        program.chmod(0o755)
    given = {"SHARDS": "2", "CLASSES": "6", "EXTRACT": "--backbone tiny --size 64 --workers 0"}
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **given, "PATH": path, "STAND_IN_SLURM": str(folder)}
    environment.pop("UNSUPSEG_WORKSPACE", None)

    def submit():
        before = set(folder.glob("*.job"))
        done = subprocess.run(
            ["bash", SUBMIT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, dict(job.read_text().split() for job in {*folder.glob("*.job")} - before)

    return submit


def logs(folder, job):
    """Return what the jobs of a name said, in the order of their numbers."""
    paths = (folder / "slurm-run").glob(f"{job}-*.log")
    return [path.read_text() for path in sorted(paths, key=lambda path: int(path.stem.split("-")[-1]))]


def test_the_chain_runs_and_a_failed_shard_stops_what_needs_it_until_it_is_submitted_again(cluster, tmp_path):
    broken, run = tmp_path / "jobs" / "broken-node", tmp_path / "slurm-run"
    broken.touch()
    _, states = cluster()
    assert states == {"extract": "FAILED", **dict.fromkeys(CHAIN[1:], "CANCELLED")}
    workspace = Workspace(tmp_path / "unsupseg-workspace")
    assert list(workspace.artifacts()) == []
    assert not (run / "features").exists()

    broken.unlink()
    said, states = cluster()
    assert states == dict.fromkeys(CHAIN, "COMPLETED"), logs(tmp_path, "*")
    assert "eval 10" in said
    assert "going on after 1 finished blocks" in "".join(logs(tmp_path, "extract"))
    made = {artifact.manifest.kind: artifact for artifact in workspace.artifacts()}
    assert {*made} == {"features", "pseudolabels", "model", "predictions", "evaluation"}
    for kind, artifact in made.items():
        assert (run / kind).read_text().strip() == str(artifact.path)

    _, states = cluster()
    assert states == dict.fromkeys(CHAIN, "COMPLETED")
    assert len(list(workspace.artifacts())) == len(made)
    assert "reused" in logs(tmp_path, "train")[-1]
