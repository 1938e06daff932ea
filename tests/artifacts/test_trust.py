"""A workspace from somebody else: nothing in it leads out of it, and names are only names."""

import json
import multiprocessing
import os
import time

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unsupseg_cli.artifacts.arrays import HDF5, RowReader
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.artifacts.index import INDEX
from unsupseg_cli.artifacts.manifest import MANIFEST
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.names import cell, file_name, file_path, visible


def identity(slug="photos", **config):
    return Identity(kind="features", stage="extract", stage_version=1, slug=slug, config=config)


def write(draft):
    (draft.folder / "data.bin").write_text("data")
    return {}


@pytest.fixture
def outside(tmp_path):
    """A folder beside the workspace, with a file that must stay."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "keep").write_text("keep")
    return tmp_path / "outside"


@pytest.fixture
def space(tmp_path):
    return Workspace(tmp_path / "work")


def untouched(outside):
    return [path.name for path in outside.iterdir()] == ["keep"] and (outside / "keep").read_text() == "keep"


# Links and paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["id", "kind", "key"])
def test_the_manifest_of_a_draft_does_not_say_where_it_goes(space, outside, field):
    first = identity()
    artifact, _ = space.produce(first, write)
    manifest = json.loads((artifact.path / MANIFEST).read_text())
    artifact.path.rename(space.draft_folder(first))
    text = json.dumps({**manifest, field: "../../outside/stolen"})
    (space.draft_folder(first) / MANIFEST).write_text(text)
    made, _ = space.produce(first, write)
    assert made.path == space.root / "features" / first.id
    assert untouched(outside)


def test_a_manifest_that_lists_files_outside_is_damaged(space, outside):
    artifact, _ = space.produce(identity(), write)
    text = (artifact.path / MANIFEST).read_text().replace('"data.bin"', '"../../../outside/keep"')
    (artifact.path / MANIFEST).write_text(text)
    assert "expected a path inside the artifact" in space.damaged()[0]


@pytest.mark.parametrize("place", ["features", ".locks", "draft", "inside the draft", "lock", "holder"])
def test_links_inside_a_workspace_are_refused(space, outside, place):
    one, other = identity(), identity(other=True)
    space.produce(other, write)
    draft, lock = space.draft_folder(one), space._lock(one)
    if place in ("features", ".locks"):
        (space.root / place).rename(space.root.with_name("moved"))
        (space.root / place).symlink_to(outside)
    elif place == "draft":
        draft.symlink_to(outside)
    elif place == "inside the draft":
        Draft(draft)
        (draft / "patch").symlink_to(outside)
    else:
        (lock if place == "lock" else lock.with_suffix(".holder")).symlink_to(outside / "keep")
    with pytest.raises(UnsupsegError, match="is a symbolic link"):
        space.produce(one, write)
    assert untouched(outside)


def test_an_artifact_that_is_a_link_is_left_out_and_named(space, outside):
    artifact, _ = space.produce(identity(), write)
    artifact.path.rename(outside.parent / "elsewhere")
    artifact.path.symlink_to(outside.parent / "elsewhere")
    assert list(space.artifacts()) == []
    assert "is a symbolic link" in space.damaged()[0]
    made, reused = space.produce(identity(), write)
    assert not reused
    assert not made.path.is_symlink()
    assert (outside.parent / "elsewhere" / "data.bin").exists()


def test_gc_removes_nothing_outside_its_workspace(call, space, outside):
    elsewhere = Workspace(outside.parent / "elsewhere")
    foreign, _ = elsewhere.produce(identity(), write)
    own, _ = space.produce(identity(), write)
    _, said = call("gc", "--workspace", space.root, "--remove", foreign.path, "--yes", code=2)
    assert "is no artifact of the workspace" in said
    assert (foreign.path / "data.bin").exists()
    call("gc", "--workspace", space.root, "--remove", own.id, "--yes")
    assert not own.path.exists()


def test_gc_says_that_there_is_nothing_to_remove(call, space):
    made, _ = space.produce(identity(), write)
    said = call("gc", "--workspace", space.root)[1]
    assert "nothing to remove" in said
    assert (
        f"what takes most of 0.0 MB, and is made again by the same call: 0.0 MB {made.manifest.kind} '{made.id}'"
        in said
    )
    assert f"--remove {made.id}" in said


@pytest.mark.parametrize("kind", ["external", "virtual", "external link", "soft link"])
def test_an_hdf5_file_that_reads_other_files_is_refused(tmp_path, kind):
    (tmp_path / "secret.bin").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["patch"] = np.ones((3, 2), np.float32)
    with h5py.File(tmp_path / HDF5, "w") as file:
        if kind == "external":
            place = [(str(tmp_path / "secret.bin"), 0, 24)]
            file.create_dataset("patch", (3, 2), np.float32, external=place)
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3, 2), np.float32)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "patch", (3, 2))
            file.create_virtual_dataset("patch", layout)
        elif kind == "external link":
            file["patch"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "patch")
        else:
            file["real"] = np.ones((3, 2), np.float32)
            file["patch"] = h5py.SoftLink("/real")
    with pytest.raises(UnsupsegError, match="nothing beside the artifact is read"):
        RowReader(tmp_path / "patch")


# Names -----------------------------------------------------------------------------------------------------


@given(st.text())
def test_a_file_name_is_one_visible_name_that_every_disk_takes(text):
    name = file_name(text)
    assert 0 < len(name.encode()) <= 200
    assert name[0] not in ".-"
    assert "/" not in name
    assert visible(name) == name
    assert file_name(name) == name


def test_ordinary_names_stay_and_long_ones_stay_apart():
    for name in ("photos-all-kmeans3", "Straße 12.jpg", "北京", "a_b"):
        assert file_name(name) == name
    assert file_path("a/b.png") == "a/b.png"
    assert file_path("../.hidden/b.png") == "_./_hidden/b.png"
    assert file_name("x" * 300 + "a") != file_name("x" * 300 + "b")
    assert cell("=1+1") == "'=1+1"
    assert visible("a\x1b[31m\nb") == "a\\x1b[31m\\nb"


@pytest.mark.parametrize("slug", [".hidden", ".partial-x", "-rf", "x" * 250, "a\nb", "a/b"])
def test_an_artifact_of_any_name_is_listed_found_and_kept_by_gc(space, slug):
    made, _ = space.produce(identity(slug), write)
    assert made.path.parent == space.root / "features"
    assert [item.id for item in space.artifacts()] == [made.id]
    assert space.get(made.id).path == made.path
    assert space.leftovers(shared=True) == []
    assert len(str(made.path).splitlines()) == 1
    assert space.produce(identity(slug), write)[1]


# Waiting ---------------------------------------------------------------------------------------------------


def _hold(root, begun):
    def work(draft):
        begun.set()
        time.sleep(1.5)
        return write(draft)

    Workspace(root).produce(identity(), work)


def test_a_second_writer_says_for_whom_it_waits(space):
    processes = multiprocessing.get_context("fork")
    begun = processes.Event()
    first = processes.Process(target=_hold, args=(space.root, begun))
    first.start()
    assert begun.wait(30)
    said = []
    _, reused = space.produce(identity(), write, tell=said.append)
    first.join()
    assert reused
    assert len(said) == 1
    assert f"is being written by process {first.pid}" in said[0]
    assert "waiting for it" in said[0]


# The index -------------------------------------------------------------------------------------------------


@pytest.fixture
def many(space):
    """A workspace of 2,000 artifacts, most of them nothing but a manifest."""
    artifact, _ = space.produce(identity(), write)
    manifest = json.loads((artifact.path / MANIFEST).read_text())
    for number in range(2000):
        key = f"{number:08x}" + manifest["key"][8:]
        folder = artifact.path.with_name(f"photos-{key[:8]}")
        folder.mkdir()
        (folder / MANIFEST).write_text(json.dumps({**manifest, "key": key, "id": folder.name}))
    return space.root


def test_two_thousand_artifacts_cost_a_command_little(many, monkeypatch):
    assert len(Workspace(many).listed()) == 2001
    assert (many / INDEX).exists()
    read = []
    monkeypatch.setattr("unsupseg_cli.artifacts.index.read_manifest", read.append)
    seconds = []
    for _ in range(3):  # what else the process does, such as collecting garbage, is not the command's
        start = time.process_time()
        space = Workspace(many)
        assert space.find_current("features") is not None
        assert space.get("photos-000007ce").manifest.key.startswith("000007ce")
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.3
    assert read == []


@pytest.mark.parametrize("damage", ["missing", b"", b"[]", b'{"format": 1, "artifacts": {"features/x": 3}}'])
def test_the_index_is_made_again_when_it_is_missing_or_damaged(many, damage):
    whole = [item.entry.id for item in Workspace(many).listed()]
    if damage == "missing":
        (many / INDEX).unlink()
    else:
        (many / INDEX).write_bytes(damage)
    assert [item.entry.id for item in Workspace(many).listed()] == whole
    assert json.loads((many / INDEX).read_text())["format"] == 1


def test_the_index_follows_what_is_made_changed_and_removed(many):
    Workspace(many).listed()
    space = Workspace(many)
    new, _ = space.produce(identity("new"), write)
    space.remove(many / "features" / "photos-00000001")
    path = many / "features" / "photos-00000002" / MANIFEST
    text = path.read_text().replace('"used_labels": false', '"used_labels": true ')
    path.write_text(text)
    os.utime(path, ns=(1, 1))
    for reader in (space, Workspace(many)):
        listed = {item.entry.id: item.entry for item in reader.listed()}
        assert new.id in listed
        assert "photos-00000001" not in listed
        assert listed["photos-00000002"].used_labels
