"""samples/slurm: the chain as jobs, run by a stand-in for `sbatch`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures.pictures import noise, save
from fixtures.weights import write_vits14

from unsupseg_cli.artifacts.workspace import Workspace

ROOT = Path(__file__).parents[2]
SUBMIT = "samples/slurm/submit.sh"
STAND_IN = Path(__file__).with_name("sbatch.py")
CHAIN = ["extract", "pseudolabel", "train", "predict", "eval"]

SHARD = """#!/usr/bin/env bash
if [ -e "$STAND_IN_SLURM/broken-node" ] && [ "${{SLURM_ARRAY_TASK_ID:-}}" = 2 ]; then exit 1; fi
exec {command} "$@"
"""
"""The command, which fails in task 2 of an array while a file says so."""


@pytest.fixture
def cluster(tmp_path, command_folder):
    """Submit the chain by a line of the shell; returns (stdout, the state of each job of this submission by name)."""
    folder, programs = tmp_path / "jobs", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    (programs / "sbatch").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    (programs / "unsupseg").write_text(SHARD.format(command=command_folder / "unsupseg"))
    for program in programs.iterdir():
        program.chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "STAND_IN_SLURM": str(folder)}
    environment.pop("UNSUPSEG_WORKSPACE", None)
    (tmp_path / "samples").symlink_to(ROOT / "samples")

    def submit(line):
        before = set(folder.glob("*.job"))
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, dict(job.read_text().split() for job in {*folder.glob("*.job")} - before)

    return submit


def logs(folder, job):
    """Return what the jobs of a name said, in the order of their numbers."""
    paths = (folder / "slurm-run").glob(f"{job}-*.log")
    return [path.read_text() for path in sorted(paths, key=lambda path: int(path.stem.split("-")[-1]))]


def test_the_chain_runs_and_a_failed_shard_stops_what_needs_it_until_it_is_submitted_again(cluster, tmp_path):
    line = f"SHARDS=2 CLASSES=6 EXTRACT='--backbone tiny --size 64 --workers 0' {SUBMIT}"
    broken, run = tmp_path / "jobs" / "broken-node", tmp_path / "slurm-run"
    broken.touch()
    _, states = cluster(line)
    assert states == {"extract": "FAILED", **dict.fromkeys(CHAIN[1:], "CANCELLED")}
    workspace = Workspace(tmp_path / "unsupseg-workspace")
    assert list(workspace.artifacts()) == []
    assert not (run / "features").exists()

    broken.unlink()
    said, states = cluster(line)
    assert states == dict.fromkeys(CHAIN, "COMPLETED"), logs(tmp_path, "*")
    assert "eval 10" in said
    assert "going on after 1 finished blocks" in "".join(logs(tmp_path, "extract"))
    made = {artifact.manifest.kind: artifact for artifact in workspace.artifacts()}
    assert {*made} == {"features", "pseudolabels", "model", "predictions", "evaluation"}
    for kind, artifact in made.items():
        assert (run / kind).read_text().strip() == str(artifact.path)

    _, states = cluster(line)
    assert states == dict.fromkeys(CHAIN, "COMPLETED")
    assert len(list(workspace.artifacts())) == len(made)
    assert "reused" in logs(tmp_path, "train")[-1]


@pytest.mark.documents
def test_the_submission_of_the_page_on_scaling_runs(cluster, tmp_path):
    labels = np.arange(2, dtype=np.uint8).repeat(32)[:, None].repeat(64, 1)
    for split in ("train", "val"):
        noise(tmp_path / "photos/images" / split, {f"{number}.png": (64, 64) for number in range(3)})
        save(tmp_path / "photos/labels" / split / "0.png", labels)
    (tmp_path / "photos/classes.json").write_text('{"classes": ["near", "far"]}')
    write_vits14(tmp_path / "vits14.safetensors")
    (tmp_path / "unsupseg.toml").write_text(
        '[extract]\nweights = "vits14.safetensors"\nsize = 112\nworkers = 0\n[predict]\nworkers = 0\n'
    )
    (line,) = re.findall(rf"^.* {SUBMIT}$", (ROOT / "docs/scaling.md").read_text(), re.MULTILINE)
    _, states = cluster(line.replace("/shared/photos", "photos").replace("SHARDS=16", "SHARDS=3"))
    assert states == dict.fromkeys(CHAIN, "COMPLETED"), logs(tmp_path, "*")
