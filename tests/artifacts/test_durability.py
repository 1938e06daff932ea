"""What survives a power loss, and what of a damaged draft is made again."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unsupseg_cli import (
    Context,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    TrainConfig,
    extract,
    predict,
    pseudolabel,
    train,
)
from unsupseg_cli.artifacts import files
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.artifacts.manifest import MANIFEST
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.inference import extraction
from unsupseg_cli.methods.kmeans.config import TrainOptions
from unsupseg_cli.training.checkpoint import STATE, DiskCheckpoint


@pytest.fixture
def photos(tmp_path):
    for number in range(4):
        rng = np.random.default_rng(number)
        shape = (48, 64 + 16 * (number % 2), 3)  # of two sizes: ragged grids
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8)).save(
            tmp_path / "photos" / f"{number}.png"
        )
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def _blocks_of_one_view(monkeypatch):
    monkeypatch.setattr(extraction, "views_per_block", lambda *_: 1)
    monkeypatch.setattr("unsupseg_cli.contents.mask_writer.views_per_block", lambda *_: 1)


class PowerLoss(Exception):  # noqa: N818 - it is no error of the program
    """The machine stops."""


class Disk:
    """A disk that loses at a power loss what was not flushed: it replays the order of writes and flushes."""

    def __init__(self, monkeypatch):
        self.flushed, sync = {}, os.fsync

        def remembering(handle):
            sync(handle)
            status = os.fstat(handle)
            self.flushed[status.st_ino] = (status.st_size, status.st_mtime_ns)

        monkeypatch.setattr(os, "fsync", remembering)

    def lose_power(self, folder):
        """Zero every file below a folder that was changed since it was flushed; return their names."""
        lost = []
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".lock":
                status = path.stat()
                if self.flushed.get(status.st_ino) != (status.st_size, status.st_mtime_ns):
                    path.write_bytes(b"\0" * status.st_size)
                    lost.append(path.relative_to(folder).as_posix())
        return lost


def steps(photos, context):
    """Make one artifact after the other; yields (kind, call)."""
    config = ExtractConfig(dataset=f"{photos}/", size=48, workers=0, device="cpu", backbone="untrained")
    features = extract(config, context)
    masks = pseudolabel(PseudolabelConfig(features=features.id, classes=3, sheet=0), context)
    model = train(TrainConfig(pseudolabels=masks.id), context, options=TrainOptions(steps=20))
    predictions = predict(PredictConfig(model=model.id, workers=0, keep="scores"), context)
    return {item.manifest.kind: item for item in (features, masks, model, predictions)}


@pytest.mark.parametrize("part", [1, 3])
@pytest.mark.parametrize("kind", ["features", "pseudolabels", "predictions"])
def test_after_a_power_loss_the_same_call_ends_as_an_undisturbed_one(
    photos, tmp_path, monkeypatch, kind, part
):
    whole = steps(photos, Context(Workspace(tmp_path / "whole")))
    context, finish = Context(Workspace(tmp_path / "work")), Draft.finish
    disk, count = Disk(monkeypatch), 0

    def stopping(self, name, note=None, files=()):
        nonlocal count
        finish(self, name, note, files)
        count += self.folder.parent.name == kind and name not in ("sources", "shared")
        if count == part:
            count = 99
            raise PowerLoss

    monkeypatch.setattr(Draft, "finish", stopping)
    with pytest.raises(PowerLoss):
        steps(photos, context)
    (draft,) = (tmp_path / "work" / kind).glob(".partial-*")
    lost = disk.lose_power(draft)
    notes = [path.name for path in (draft / "done").iterdir()]
    assert len(notes) == part + 1  # and the note of the sources
    assert not [name for name in lost if name.startswith("done/")]
    again = steps(photos, context)
    assert {name: item.manifest.digest for name, item in again.items()} == {
        name: item.manifest.digest for name, item in whole.items()
    }
    assert not context.workspace.verify(again[kind])


def test_what_is_published_lies_on_the_disk_and_scratch_is_not_flushed_again(photos, tmp_path, monkeypatch):
    flushed, sync = [], os.fsync

    def naming(handle):
        sync(handle)
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink())

    monkeypatch.setattr(os, "fsync", naming)
    config = ExtractConfig(dataset=f"{photos}/", size=48, workers=0, device="cpu", backbone="untrained")
    made = extract(config, Context(Workspace(tmp_path / "work")))
    draft = tmp_path / "work" / "features" / f".partial-{made.manifest.key[:16]}"
    within = [path.relative_to(draft).as_posix() for path in flushed if path.is_relative_to(draft)]
    assert {*made.manifest.outputs, "patch", "patch/c", "."} <= {*within}
    notes = [name for name in within if name.startswith("done/")]
    assert len(notes) == 5  # one for each block and for the sources, when it was written


def test_data_lie_on_the_disk_before_the_note_that_vouches_for_them(tmp_path, monkeypatch):
    disk, written = Disk(monkeypatch), []
    replace = files.Path.replace

    def noting(self, target):
        if target.parent.name == "done":
            status = (tmp_path / "draft" / "data.bin").stat()
            written.append(disk.flushed.get(status.st_ino) == (status.st_size, status.st_mtime_ns))
        return replace(self, target)

    monkeypatch.setattr(files.Path, "replace", noting)
    draft = Draft(tmp_path / "draft")
    (draft.folder / "data.bin").write_bytes(b"data")
    draft.finish("part", None, [draft.folder / "data.bin"])
    assert written == [True]


def test_a_finished_block_that_was_zeroed_is_made_again(photos, tmp_path, monkeypatch):
    whole = steps(photos, Context(Workspace(tmp_path / "whole")))["features"]
    context, close = Context(Workspace(tmp_path / "work")), extraction.Extraction.close
    with monkeypatch.context() as patch:
        patch.setattr(extraction.Extraction, "close", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            steps(photos, context)
    blocks = sorted((tmp_path / "work" / "features").glob(".partial-*/.patch.blocks/*.npy"))
    assert len(blocks) == 4
    blocks[2].write_bytes(b"\0" * blocks[2].stat().st_size)
    assert extraction.Extraction.close is close
    assert steps(photos, context)["features"].manifest.digest == whole.manifest.digest


@pytest.mark.parametrize("damage", [b"", b"\0" * 300, b"{}"])
def test_a_draft_whose_manifest_or_notes_are_damaged_is_made_again(tmp_path, damage):
    workspace = Workspace(tmp_path / "work")
    identity = Identity(kind="features", stage="extract", stage_version=1, slug="photos", config={})
    draft = Draft(workspace.draft_folder(identity))
    for path in (draft.folder / MANIFEST, draft.folder / "done" / "part.json"):
        path.write_bytes(damage)

    def work(draft):
        assert not draft.is_done("part")
        (draft.folder / "data.bin").write_bytes(b"data")
        return {}

    artifact, reused = workspace.produce(identity, work)
    assert not reused
    assert workspace.verify(artifact) == []


def test_a_complete_draft_whose_files_were_lost_is_made_again(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path / "work")
    identity = Identity(kind="features", stage="extract", stage_version=1, slug="photos", config={})

    def work(draft):
        (draft.folder / "data.bin").write_bytes(b"data")
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            workspace.produce(identity, work)
    (workspace.draft_folder(identity) / "data.bin").write_bytes(b"\0\0\0\0")
    artifact, _ = workspace.produce(identity, work)
    assert (artifact.path / "data.bin").read_bytes() == b"data"


@pytest.mark.parametrize("damage", ["cut", "zeroed", "empty", "nan"])
def test_a_damaged_checkpoint_is_discarded_and_said(tmp_path, damage):
    said = []
    checkpoint = DiskCheckpoint(tmp_path, said.append)
    state = {"module": {"w": torch.ones(500)}, "optimizer": {}, "task": {}, "step": 7, "seconds": 1.0}
    if damage == "nan":
        state["module"]["w"][3] = float("nan")
    checkpoint.save(state)
    content = bytearray((tmp_path / STATE).read_bytes())
    if damage == "zeroed":
        place = content.find(np.ones(100, np.float32).tobytes())
        content[place : place + 100] = bytes(100)
    content = {"cut": content[: len(content) // 2], "empty": b""}.get(damage, content)
    (tmp_path / STATE).write_bytes(content)
    assert checkpoint.load() is None
    assert "begins anew" in said[0]
    assert checkpoint.load() is None
    assert len(said) == 1
    shutil.rmtree(tmp_path / STATE.parent)
