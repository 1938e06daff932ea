"""What happens when the disk, the clock, the device or the user fails: the table in docs/reliability.md."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from unsupseg_cli import Context, ExtractConfig, extract
from unsupseg_cli.artifacts import workspace as workspace_module
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.models.backbone import Backbone

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")


def prepare(matrix, stage, space):
    """Make a workspace that holds what a stage reads, but not what it makes."""
    matrix.make(stage)
    shutil.copytree(matrix.space, space)
    shutil.rmtree(next(space.glob(f"*/{matrix.made[stage]}")))
    (space / "current.json").unlink()


@pytest.fixture
def call(kill_matrix, matrix, tmp_path):
    """Run a stage in a workspace that holds what the stage reads; returns (exit code, what it said)."""

    def run(stage, expected=0, space=tmp_path / "space", **fault):
        if not space.exists():
            prepare(matrix, stage, space)
        answer = matrix.driver.run(kill_matrix.command(stage, matrix.images, matrix.made), space, **fault)
        said = " ".join(answer["said"].split())
        assert answer["code"] == expected, said
        assert "Traceback" not in said
        return said

    return run


def same_as_undisturbed(matrix, stage, space):
    artifact = Workspace(space).get(matrix.made[stage])
    assert artifact.manifest.digest == matrix.digests[stage]
    assert Workspace(space).verify(artifact) == []
    assert Workspace(space).leftovers() == []


STAGES = ["extract", "extract-hdf5", "pseudolabel-primaps", "train-kmeans", "predict", "pretrain"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_named_and_the_same_call_goes_on(call, matrix, stage, tmp_path):
    said = call(stage, 1, file_limit=2500)
    assert "is full" in said
    assert "goes on where it stopped" in said
    assert matrix.made[stage] not in {item.id for item in Workspace(tmp_path / "space").artifacts()}
    call(stage)
    same_as_undisturbed(matrix, stage, tmp_path / "space")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("stage", ["extract", "pseudolabel-primaps", "train-kmeans", "predict", "pretrain"])
def test_a_disk_that_is_really_full_is_named_and_the_same_call_goes_on(call, matrix, stage, small_disk):
    space = small_disk / "space"
    prepare(matrix, stage, space)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    os.truncate(filler, filler.stat().st_size - 8192)
    assert re.search("is full|MB free", call(stage, 1, space=space))
    assert matrix.made[stage] not in {item.id for item in Workspace(space).artifacts()}
    filler.unlink()
    call(stage, space=space)
    same_as_undisturbed(matrix, stage, space)


@pytest.mark.parametrize("stage", ["extract", "train-kmeans", "predict"])
@pytest.mark.parametrize("action", ["int", "term"])
def test_ctrl_c_and_sigterm_stop_with_130_and_the_same_call_goes_on(call, matrix, stage, action, tmp_path):
    point = matrix.make(stage)["changes"] // 2
    assert "goes on where it was" in call(stage, 130, point=point, action=action)
    call(stage)
    same_as_undisturbed(matrix, stage, tmp_path / "space")


@pytest.mark.parametrize("stage", ["extract", "pseudolabel-kmeans", "train-kmeans", "predict"])
def test_a_workspace_that_vanishes_is_named(call, matrix, stage, tmp_path):
    space = tmp_path / "space"
    point = matrix.make(stage)["changes"] // 2
    assert "removed while it was in use" in call(stage, 1, point=point, action="move")
    shutil.rmtree(space, ignore_errors=True)  # a stage may have made a folder again before it noticed
    (tmp_path / "space.away").rename(space)
    call(stage)
    same_as_undisturbed(matrix, stage, space)


def unlock(space):
    for folder in [space, *space.rglob("*")]:
        if folder.is_dir():
            folder.chmod(0o755)


def test_a_read_only_workspace_is_named_but_what_is_there_is_reused(call, matrix, tmp_path):
    space = tmp_path / "space"
    call("extract")
    shutil.rmtree(space / "backbone", ignore_errors=True)
    for folder in [space, *space.rglob("*")]:
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    try:
        assert matrix.made["extract"] in call("extract", powerless=True)
        assert "--workspace" in call("pretrain", 1, powerless=True)
    finally:
        unlock(space)


def test_a_workspace_that_becomes_read_only_is_named_and_the_same_call_goes_on(call, matrix, tmp_path):
    point = matrix.make("extract")["changes"] // 2
    try:
        said = call("extract", 1, point=point, action="lock", powerless=True)
    finally:
        unlock(tmp_path / "space")
    assert "make it writable" in said
    call("extract")
    same_as_undisturbed(matrix, "extract", tmp_path / "space")


def largest(folder):
    """Return the largest file that is no picture."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png")
    return max(files, key=lambda path: path.stat().st_size)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("stage", ["extract", "extract-hdf5"])
def test_a_flipped_bit_is_found_by_verify_and_the_same_call_rebuilds(call, matrix, stage, tmp_path):
    call(stage)
    space = Workspace(tmp_path / "space")
    artifact = space.get(matrix.made[stage])
    file = largest(artifact.path)
    flip(file)
    (problem,) = space.verify(artifact)
    assert file.relative_to(artifact.path).as_posix() in problem
    assert "was changed" in problem
    assert "written" in call(stage)
    same_as_undisturbed(matrix, stage, tmp_path / "space")


@pytest.mark.parametrize("stage", ["extract", "extract-hdf5"])
def test_a_cut_shard_is_seen_by_the_same_call_which_rebuilds(call, matrix, stage, tmp_path):
    call(stage)
    artifact = Workspace(tmp_path / "space").get(matrix.made[stage])
    patch = artifact.path / "patch"
    file = largest(patch if patch.is_dir() else artifact.path)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UnsupsegError, match=r"cut short|cannot be opened"):
        FeatureSet(artifact).patch[0]
    assert "written" in call(stage)
    same_as_undisturbed(matrix, stage, tmp_path / "space")


def test_an_input_of_a_newer_format_is_refused(call, matrix, tmp_path):
    matrix.make("graph")
    call("extract")
    path = tmp_path / "space" / "features" / matrix.made["extract"] / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    said = call("extract", 1)
    assert "format version 2" in said
    assert "update unsupseg" in said


def test_two_processes_with_one_key_make_it_once(matrix, kill_matrix, tmp_path):
    command = [Path(sys.executable).with_name("unsupseg"), *kill_matrix.command("extract", matrix.images, {})]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, "-w", tmp_path], **pipes) for _ in range(2)]
    out = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], out
    assert out[0][0] == out[1][0]
    # The one that came second waited for the first, and said so, or came after it; it made nothing either way.
    assert sorted("written in" in said for _, said in out) == [False, True], out
    assert sorted("reused" in said for _, said in out) == [False, True], out
    matrix.make("extract")
    same_as_undisturbed(matrix, "extract", tmp_path)


def test_a_clock_that_goes_backwards_changes_dates_only(matrix, tmp_path, monkeypatch):
    class Backwards(datetime):
        ticks = 0

        @classmethod
        def now(cls, tz=None):
            cls.ticks += 1
            return datetime(2030, 1, 1, tzinfo=UTC) - timedelta(days=cls.ticks)

    monkeypatch.setattr(workspace_module, "datetime", Backwards)
    context = Context(Workspace(tmp_path))
    fields = {"dataset": f"{matrix.images / 'ragged'}/", "backbone": "untrained", "workers": 0}
    first = extract(ExtractConfig(size=32, **fields), context)
    second = extract(ExtractConfig(size=48, **fields), context)
    assert first.manifest.started > second.manifest.started
    assert second.manifest.seconds >= 0
    assert context.workspace.current("features").id == second.id
    assert extract(ExtractConfig(size=32, **fields), context).manifest == first.manifest
    assert [context.workspace.verify(item) for item in (first, second)] == [[], []]


def test_out_of_memory_halves_the_batch_and_gives_the_same_features(matrix, tmp_path, monkeypatch):
    """Tolerance: a relative 1e-3 of the largest value (tokens are stored with 11 bits: 5e-4)."""
    config = ExtractConfig(
        dataset=f"{matrix.images / 'images' / 'train'}/", size=32, backbone="untrained", workers=0
    )
    whole = extract(config, Context(Workspace(tmp_path / "whole")))
    forward, sizes = Backbone.forward, []

    def small_memory(self, images, keep=()):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images, keep)

    monkeypatch.setattr(Backbone, "forward", small_memory)
    halved = extract(config, Context(Workspace(tmp_path / "halved")))
    assert max(sizes) == 6
    assert sizes[-1] <= 2
    for name in ("patch", "cls", "pooled"):
        one, other = (
            np.stack(FeatureSet(item).patch.take(range(6)))
            if name == "patch"
            else FeatureSet(item).rows(name)
            for item in (whole, halved)
        )
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-3 * float(abs(one).max()))
