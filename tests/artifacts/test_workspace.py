import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from unsupseg_cli.artifacts.canonical import canonical_json, digest_json
from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.artifacts.manifest import Manifest, read_manifest
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.main import app
from unsupseg_cli.core.errors import UnsupsegError, UsageError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def recipe(kind="features", **changes):
    fields = {"stage": "extract", "stage_version": 1, "slug": "photos", "config": {"size": 320}, **changes}
    return Identity(kind=kind, **fields)


def write_one(text="hello"):
    def work(draft):
        (draft.folder / "data.bin").write_text(text)
        return {"length": len(text)}

    return work


@given(VALUES)
def test_canonical_json_says_the_same_whatever_the_order(value):
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == text


CONFIGS = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.integers()))


@given(CONFIGS, CONFIGS)
def test_keys_are_equal_when_what_decides_is_equal(one, other):
    """The order of options and what only says how the work is done change no key; any option does."""
    key = recipe(config=one).key
    assert recipe(config=dict(reversed(one.items())), execution={"device": "cuda"}, slug="else").key == key
    assert (recipe(config=other).key == key) == (canonical_json(one) == canonical_json(other))
    assert recipe(config=one, stage_version=2).key != key
    assert recipe(config=one, weights="w").key != key


def test_the_formula_of_keys_stays_as_it_is():
    """Artifacts of earlier versions are found by their keys: another formula would orphan them all."""
    assert recipe().key == digest_json(
        {
            "config": {"size": 320},
            "images": "",
            "inputs": [],
            "labels": "",
            "stage": "extract",
            "version": 1,
            "weights": "",
        }
    )
    assert recipe().key == "f45beab2d6c9266e0ebc543f53cbf38fa692eb36bcb511d99c1c3c06d58feb8a"


def test_canonical_json_refuses_what_has_no_text():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": float("nan")})


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"size": 321}},
        {"stage_version": 2},
        {"weights": "ab"},
        {"label_fingerprint": "cd"},
        {"inputs": [{"role": "model", "kind": "model", "id": "m", "key": "k", "digest": "d"}]},
    ],
)
def test_everything_that_decides_the_result_changes_the_key(changes):
    from unsupseg_cli.artifacts.manifest import Input

    if "inputs" in changes:
        changes = {"inputs": [Input(**one) for one in changes["inputs"]]}
    assert recipe(**changes).key != recipe().key


def test_how_the_work_is_done_does_not_change_the_key():
    assert recipe(execution={"device": "cuda"}, slug="other").key == recipe().key


def test_an_artifact_is_reused_and_force_makes_it_again(tmp_path):
    space = Workspace(tmp_path)
    first, reused = space.produce(recipe(), write_one())
    assert not reused
    again, reused = space.produce(recipe(), write_one("never written"))
    assert reused
    assert again.manifest.digest == first.manifest.digest
    forced, reused = space.produce(recipe(), write_one("other"), force=True)
    assert not reused
    assert (forced.path / "data.bin").read_text() == "other"
    assert space.verify(forced) == []
    assert not list(tmp_path.glob("features/.partial*"))


def test_a_failing_stage_publishes_nothing_and_keeps_the_old(tmp_path):
    space = Workspace(tmp_path)
    space.produce(recipe(), write_one())

    def fail(draft):
        (draft.folder / "data.bin").write_text("half")
        raise UnsupsegError("no")

    with pytest.raises(UnsupsegError):
        space.produce(recipe(), fail, force=True)
    assert (space.get("photos").path / "data.bin").read_text() == "hello"
    assert len(list(space.artifacts())) == 1


def test_an_interrupted_stage_goes_on_where_it_was(tmp_path):
    space, seen = Workspace(tmp_path), []

    def work(draft):
        for part in ("a", "b", "c"):
            if draft.is_done(part):
                continue
            seen.append(part)
            (draft.folder / part).write_text(part)
            draft.finish(part, {"n": 1})
            if seen == ["a", "b"]:
                raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        space.produce(recipe(), work)
    assert list(space.artifacts()) == []
    assert len(space.leftovers()) == 1
    artifact, _ = space.produce(recipe(), work)
    assert seen == ["a", "b", "c"]
    assert sorted(artifact.manifest.outputs) == ["a", "b", "c"]
    assert space.leftovers() == []


def test_current_follows_what_was_written_or_reused(tmp_path):
    from unsupseg_cli.artifacts.manifest import DataSource

    def data(split):
        return DataSource(dataset="d", split=split, fingerprint=split, count=1)

    space = Workspace(tmp_path)
    train, _ = space.produce(recipe(data=data("train")), write_one())
    val, _ = space.produce(recipe(data=data("val")), write_one())
    assert space.current("features").id == val.id
    assert space.current("features", "train").id == train.id
    space.produce(recipe(data=data("train")), write_one())
    assert space.current("features").id == train.id
    with pytest.raises(UsageError, match="No model in the workspace"):
        space.current("model")
    aside, _ = space.produce(recipe(data=data("test")), write_one(), current=False)
    assert space.current("features").id == train.id
    assert space.find_current("features", "test") is None
    space.take([val, aside])
    assert space.current("features").id == space.current("features", "test").id == aside.id
    assert space.current("features", "train").id == train.id


def test_a_reference_must_mean_one_artifact(tmp_path):
    space = Workspace(tmp_path)
    one, _ = space.produce(recipe(), write_one())
    space.produce(recipe(config={"size": 1}), write_one())
    assert space.get(one.id).id == one.id
    assert space.get(one.manifest.key[:8]).id == one.id
    assert space.get(str(one.path)).id == one.id
    with pytest.raises(UsageError, match="more than one"):
        space.get("photos")
    with pytest.raises(UsageError, match=r"No artifact 'phtos'"):
        space.get("phtos")
    with pytest.raises(UsageError, match="kind 'features'"):
        space.get(one.id, "model")


def test_verify_names_the_changed_file_and_the_changed_input(tmp_path):
    space = Workspace(tmp_path)
    base, _ = space.produce(recipe(), write_one())
    child, _ = space.produce(recipe("model", stage="train", inputs=[base.as_input("features")]), write_one())
    space.produce(recipe(), write_one("other content"), force=True)
    assert any("its input" in problem for problem in space.verify(child))
    (child.path / "data.bin").write_text("hallo")
    assert any("data.bin' was changed" in problem for problem in space.verify(child))
    (child.path / "data.bin").unlink()
    assert any("data.bin' is missing" in problem for problem in space.verify(child))
    assert [item.id for item in space.children(base)] == [child.id]


def test_verify_tells_which_inputs_are_gone(tmp_path):
    workspace = Workspace(tmp_path)
    features, _ = workspace.produce(recipe(), write_one())
    labels, _ = workspace.produce(recipe("pseudolabels", inputs=[features.as_input("features")]), write_one())
    shutil.rmtree(features.path)
    result = CliRunner().invoke(app, ["verify", "-w", str(tmp_path)])
    assert f"features '{features.id}', which {labels.id} was made from, is gone" in result.stderr
    assert (result.exit_code, "1 artifact is whole" in result.stderr) == (0, True)


def test_a_newer_format_is_refused_and_a_damaged_manifest_named(tmp_path):
    space = Workspace(tmp_path)
    artifact, _ = space.produce(recipe(), write_one())
    path = artifact.path / "manifest.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"format_version": 99}))
    with pytest.raises(UnsupsegError, match="format version 99"):
        read_manifest(artifact.path)
    path.write_text("{")
    with pytest.raises(UnsupsegError, match="cannot be read"):
        read_manifest(artifact.path)
    assert list(space.artifacts()) == []


def test_an_older_format_is_refused_and_made_again_by_the_same_call(tmp_path):
    space = Workspace(tmp_path)
    artifact, _ = space.produce(recipe(), write_one())
    path = artifact.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 0}))
    with pytest.raises(UnsupsegError, match=r"format version 0.*run the stage again"):
        read_manifest(artifact.path)
    assert "format version 0" in space.damaged()[0]
    again, reused = space.produce(recipe(), write_one())
    assert (again.id, again.manifest.digest, reused) == (artifact.id, artifact.manifest.digest, False)
    assert space.damaged() == []


def test_a_kill_while_force_swaps_old_and_new_hides_neither(tmp_path, monkeypatch):
    space = Workspace(tmp_path)
    old, _ = space.produce(recipe(), write_one("old"))
    child, _ = space.produce(recipe("model", inputs=[old.as_input("features")]), write_one())
    rename, calls = Path.rename, []

    def killed_at_the_second(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        space.produce(recipe(), write_one("new"), force=True)
    monkeypatch.undo()
    assert [one.id for one in space.artifacts("features")] == [old.id]
    assert (space.get(old.id).path / "data.bin").read_text() == "old"
    assert space.verify(child) == []
    # A complete draft is left over; the old artifact, under its hidden name, is not.
    assert [json.loads((one / "manifest.json").read_text())["digest"] for one in space.leftovers()] != [
        old.manifest.digest
    ]
    again, reused = space.produce(recipe(), write_one("never"))
    assert ((again.path / "data.bin").read_text(), reused) == ("old", True)
    assert again.path == old.path
    forced, _ = space.produce(recipe(), write_one("never"), force=True)
    assert (forced.path / "data.bin").read_text() == "new"
    assert space.leftovers() == []


class OneOfTwoParts:
    """A share of two; the other is never made."""

    def __init__(self, draft):
        self.draft = draft

    def write(self):
        (self.draft.folder / "half.bin").write_text("half")

    def missing(self):
        return 1

    def close(self):
        raise AssertionError


def test_drafts_that_wait_for_other_shares_are_no_leftovers(tmp_path):
    space = Workspace(tmp_path)
    assert space.produce_shard(recipe(), "1-of-2", OneOfTwoParts) == (None, False)
    assert space.leftovers() == []
    (draft,) = space.leftovers(shared=True)
    assert (draft / "half.bin").exists()


def test_manifests_fit_their_schema(tmp_path):
    import jsonschema

    artifact, _ = Workspace(tmp_path).produce(recipe(), write_one())
    value = json.loads((artifact.path / "manifest.json").read_text())
    jsonschema.validate(value, Manifest.model_json_schema())
    assert value["digest"] == digest_json({"data.bin": value["outputs"]["data.bin"]["sha256"]})


def test_a_read_only_workspace_is_named(tmp_path):
    locked = tmp_path / "file"
    locked.write_text("not a folder")
    with pytest.raises(UnsupsegError, match="--workspace"):
        Workspace(locked / "workspace").produce(recipe(), write_one())


def _hold(root, ready):
    def work(draft):
        ready.set()
        time.sleep(60)
        return {}

    Workspace(root).produce(recipe(), work)


def test_a_second_writer_is_told_who_writes_and_a_killed_one_frees_the_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(UnsupsegError, match=f"process {process.pid}"):
        Workspace(tmp_path).produce(recipe(), write_one(), wait=0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    artifact, reused = Workspace(tmp_path).produce(recipe(), write_one(), wait=5)
    assert not reused
    assert (artifact.path / "data.bin").read_text() == "hello"
