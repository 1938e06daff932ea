"""The workspace in a bucket: the same keys, one copy of everything, read and written through a cache."""

import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest
from fixtures.artifacts import hang, never, recipe, write_one
from fixtures.pictures import noise

from unsupseg_cli.artifacts.manifest import DataSource
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.core.errors import UnsupsegError, UsageError


def test_what_one_machine_publishes_another_reuses_and_reads(bucket, machine):
    one, two = machine("one"), machine("two")
    made, reused = one.produce(recipe(), write_one())
    assert not reused
    taken, reused = two.produce(recipe(), never)
    assert reused
    assert taken.manifest == made.manifest
    assert bucket.count("GET", "data.bin") == 0  # reuse reads no file
    assert not taken.is_here
    assert (taken.path / "part" / "data.bin").read_text() == "hello"
    assert (taken.path / "part" / "data.bin").exists()
    assert bucket.count("GET", "data.bin") == 1
    assert bucket.count("PUT", "data.bin") == 1
    assert two.verify(taken) == []
    assert [item.id for item in two.artifacts()] == [made.id]
    assert two.current("features").id == made.id
    aside, _ = two.produce(recipe(config={"size": 9}), write_one(), current=False)
    assert one.current("features").id == made.id
    two.take([made, aside])
    assert two.current("features").id == aside.id


def test_the_files_lie_as_they_would_in_a_folder_below_the_printed_address(bucket, machine, tmp_path):
    made, _ = machine().produce(recipe(), write_one())
    local, _ = Workspace(tmp_path / "local").produce(recipe(), write_one())
    prefix = str(made.place).removeprefix(f"s3://{bucket.name}/")
    names = [name.removeprefix(f"{prefix}/") for name in bucket.keys(f"^{prefix}/")]
    assert names == sorted(path.relative_to(local.path).as_posix() for path in local.path.rglob("*.*"))
    assert json.loads(bucket.content(f"{prefix}/manifest.json"))["digest"] == local.manifest.digest
    assert machine("two").get(str(made.place)).id == machine("two").get(made.manifest.key[:8]).id == made.id
    with pytest.raises(UsageError, match="is no artifact of the workspace 's3://"):
        machine().get("s3://elsewhere/features/x")


def test_lists_read_each_manifest_once(bucket, machine):
    one, two = machine("one"), machine("two")
    for size in range(3):
        one.produce(recipe(config={"size": size}), write_one())
    assert len(two.listed()) == 3
    again = machine("two")
    assert len(again.listed()) == 3
    records = [path for method, path in bucket.requests if method == "GET" and "/published/" in path]
    assert len(set(records[-3:])) == 3
    before = len(records)
    machine("two").listed()
    assert sum("/published/" in path for method, path in bucket.requests if method == "GET") == before


def test_current_follows_all_machines_and_splits(machine):
    def data(split):
        return DataSource(dataset="d", split=split, fingerprint=split, count=1)

    train, _ = machine("one").produce(recipe(data=data("train")), write_one())
    val, _ = machine("two").produce(recipe(data=data("val")), write_one())
    three = machine("three")
    assert (three.current("features").id, three.current("features", "train").id) == (val.id, train.id)
    with pytest.raises(UsageError, match="No model in the workspace 's3://"):
        three.current("model")


def test_force_replaces_in_one_step_and_removes_the_old_files(bucket, machine):
    one, two = machine("one"), machine("two")
    one.produce(recipe(), write_one("old"))
    old, _ = two.produce(recipe(), never)
    assert (old.path / "part" / "data.bin").read_text() == "old"
    one.produce(recipe(), write_one("new"), force=True)
    two.refresh()
    fresh = machine("two").get(old.id)
    assert (fresh.path / "part" / "data.bin").read_text() == "new"
    assert len(bucket.keys("data.bin")) == 1
    assert two.verify(fresh) == []


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_verify_names_what_is_damaged_and_the_same_call_makes_it_again(bucket, machine, damage):
    one = machine("one")
    made, _ = one.produce(recipe(), write_one())
    child, _ = one.produce(recipe("model", inputs=[made.as_input("features")]), write_one())
    assert [item.id for item in one.children(made)] == [child.id]
    (name,) = bucket.keys("features/.*data.bin")
    if damage == "changed":
        bucket.change(name, b"hallo")
        with pytest.raises(UnsupsegError, match=r"'part/data.bin' of '.*' is missing or was changed: `"):
            machine("two").get(made.id).path  # noqa: B018
        assert any("data.bin' was changed" in said for said in one.verify(made))
    else:
        one.objects.remove([name.removeprefix("work/")])
        assert any("data.bin' is missing" in said for said in one.verify(made))
    again, reused = machine("three").produce(recipe(), write_one())
    assert (reused, again.manifest.digest) == (False, made.manifest.digest)
    assert machine("two").verify(again) == []
    assert len(bucket.keys("features/.*data.bin")) == 1
    assert bucket.keys("damaged") == []


def test_two_writers_at_once_make_one_copy(bucket, machine):
    made, said = [], []

    def slow(draft):
        time.sleep(1)
        return write_one()(draft)

    def run(name):
        made.append(machine(name, tell=said.append).produce(recipe(), slow, tell=said.append))

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reused for _, reused in made) == [False, True]
    assert len(bucket.keys("data.bin")) == len(bucket.keys("published")) == 1
    assert any("is being written by process" in line for line in said)


@pytest.mark.parametrize("notices", [True, False])
def test_who_was_overtaken_publishes_nothing_and_takes_what_is_there(bucket, machine, monkeypatch, notices):
    """A writer that was away for longer than its lease; at worst it wakes between its last look and the record."""
    one, two, outcome = machine("one"), machine("two"), []
    if not notices:
        monkeypatch.setattr("unsupseg_cli.storage.claims.Claim.require", lambda self: None)

    def overtaken(draft):
        dead = {"holder": "process 7 on other", "cache": "x", "token": "u", "seconds": 0.1}
        bucket.change(f"work/claims/features-{recipe().key[:16]}.json", json.dumps(dead).encode())
        two.produce(recipe(), write_one("winner"))
        return write_one("late")(draft)

    def late():  # in a thread that nothing interrupts
        try:
            outcome.append((one.produce(recipe(), overtaken)[0].path / "part" / "data.bin").read_text())
        except UnsupsegError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=late)
    thread.start()
    thread.join()
    assert ("since this process did not renew it in time" in outcome[0]) if notices else outcome == ["winner"]
    (name,) = bucket.keys("data.bin")
    assert bucket.content(name) == b"winner"
    made, reused = machine("three").produce(recipe(), never)
    assert reused
    assert machine("three").verify(made) == []


def test_after_a_kill_the_lease_passes_and_another_machine_makes_it(bucket, machine):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hang, args=(machine("one"), ready))
    process.start()
    assert ready.wait(60)
    said = []
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    made, reused = machine("two").produce(recipe(), write_one(), tell=said.append)
    assert not reused
    assert f"is being written by process {process.pid} on" in said[0]
    assert (made.path / "part" / "data.bin").read_text() == "hello"
    assert machine("one").produce(recipe(), never)[1]


def test_gc_removes_what_lost_attempts_left_and_nothing_that_is_published_or_made(
    bucket, machine, monkeypatch
):
    one = machine("one")
    made, _ = one.produce(recipe(), write_one())
    with monkeypatch.context() as patched:
        patched.setattr(
            "unsupseg_cli.storage.remote.path_of", lambda *_: 1 / 0
        )  # between the files and the record
        with pytest.raises(ZeroDivisionError):
            one.produce(recipe(config={}), write_one())
    two = machine("two")
    assert len(bucket.keys("data.bin")) == 2
    (left,) = two.leftovers()
    assert str(left).startswith(f"{two.address}/features/photos-")
    two.remove(left)
    assert len(bucket.keys("data.bin")) == 1
    assert two.leftovers() == []
    assert machine("two").verify(made) == []
    with pytest.raises(UsageError, match="nothing else is removed"):
        two.remove(f"s3://{bucket.name}/elsewhere/features/x/y")
    two.remove(made.place)
    assert list(machine("one").artifacts()) == []
    assert bucket.keys("data.bin|published") == []


def test_the_cache_drops_what_was_used_longest_ago_and_fetches_it_again(bucket, machine, tmp_path):
    size = len("hello") + len("a picture")
    for number in range(3):
        machine("one").produce(recipe(config={"size": number}), write_one())
    ids = [item.id for item in machine("one").artifacts()]
    for name in ids:
        assert machine("two", most=2 * size).get(name).path.exists()
    kept = [path.parent.parent.name for path in tmp_path.glob("two/*/features/*/part/data.bin")]
    assert sorted(kept) == sorted(ids[1:])
    with pytest.raises(UnsupsegError, match=r"'photos-.* holds 0\.0 MB at most: give more with --cache-size"):
        machine("three", most=size - 1).get(ids[0]).path  # noqa: B018
    assert not list(tmp_path.glob("three/*/features/*/part/data.bin"))
    fetched = bucket.count("GET", "data.bin")
    assert (machine("two", most=2 * size).get(ids[0]).path / "part" / "data.bin").read_text() == "hello"
    assert bucket.count("GET", "data.bin") == fetched + 1


def test_a_workspace_is_sent_to_other_processes(machine):
    one = machine("one")
    made, _ = one.produce(recipe(), write_one())
    sent = pickle.loads(pickle.dumps(made))
    assert (sent.path / "part" / "data.bin").read_text() == "hello"
    assert str(sent.workspace) == str(one)


def test_a_bucket_of_other_things_is_refused(bucket, machine):
    bucket.change("work/holiday.jpg", b"x")
    with pytest.raises(UsageError, match="holds objects, and is no workspace: it has no workspace"):
        machine().produce(recipe(), write_one())
    assert bucket.keys() == ["work/holiday.jpg"]


def test_a_damaged_record_is_told_and_made_again(bucket, machine):
    one = machine("one")
    made, _ = one.produce(recipe(), write_one())
    (name,) = bucket.keys("published")
    for text in (
        b"{",
        b'{"attempt": "../x", "manifest": {}}',
        b'{"attempt": "x", "manifest": {"id": "../../up"}}',
    ):
        bucket.change(name, text)
        two = machine("two")
        assert list(two.artifacts()) == []
        assert "cannot be read" in two.damaged()[0]
        assert two.unreadable() == two.unreadable("features") == [f"s3://{bucket.name}/{name}"]
        assert not two.unreadable("model")
        assert two.leftovers() == []  # who reads the record may find the files in use
        again, reused = two.produce(recipe(), write_one())
        assert (reused, again.manifest.digest) == (False, made.manifest.digest)


def test_a_record_of_a_newer_version_is_refused_and_its_files_stay(bucket, machine):
    made, _ = machine("one").produce(recipe(), write_one())
    (name,) = bucket.keys("published")
    record = json.loads(bucket.content(name))
    record["manifest"]["format_version"] += 1
    bucket.change(name, json.dumps(record).encode())
    record_format = {**record, "format": 2, "more": 1}
    bucket.change(name, json.dumps(record_format).encode())
    with pytest.raises(UnsupsegError, match="has format 2, this tool reads up to 1; update unsupseg"):
        machine("three").produce(recipe(), never)
    bucket.change(name, json.dumps(record).encode())
    old = machine("two")
    with pytest.raises(UnsupsegError, match="update unsupseg"):
        old.get(made.id)
    assert old.unreadable() == [f"s3://{bucket.name}/{name}"]
    assert "update unsupseg" in old.damaged()[0]
    with pytest.raises(UnsupsegError, match="update unsupseg"):
        old.produce(recipe(), never)
    other, _ = old.produce(recipe(config={"size": 9}), write_one())
    assert old.leftovers(shared=True) == []
    prefix = str(made.place).removeprefix(f"s3://{bucket.name}/")
    assert bucket.keys(f"^{prefix}/")
    old.remove(other.place)
    assert old.leftovers(shared=True) == []


CHAIN = (
    ("extract", "photos/", "--size", 48, "--backbone", "untrained"),
    ("pseudolabel", "--classes", 3, "--sheet", 0),
    ("train", "--set", "steps=20"),
    ("predict", "photos/"),
)


def test_the_commands_give_the_digests_of_a_local_run(bucket, call, monkeypatch, tmp_path):
    noise(Path("photos"), {f"{number}.png": (48, 64) for number in range(4)})
    Path("unsupseg.toml").write_text("workers = 0\n")
    digests = []
    for place in ("local", bucket.address()):
        monkeypatch.setenv("UNSUPSEG_WORKSPACE", place)
        for words in CHAIN:
            printed, _ = call(*words)
            assert printed.startswith(place)
        digests.append(
            {row["id"]: (row["key"], row["digest"]) for row in json.loads(call("list", "--json")[0])}
        )
    assert digests[0] == digests[1]
    assert len(digests[1]) == 4
    for command in (("verify",), ("show", "predictions"), ("report",), ("doctor",), ("gc",)):
        if command == ("show", "predictions"):
            command = (
                "show",
                next(name for name in digests[1] if json.loads(call("show", name, "--json")[0])),
            )
        call(*command)
    monkeypatch.setenv("UNSUPSEG_CACHE", str(tmp_path / "other"))
    model = next(row["path"] for row in json.loads(call("list", "model", "--json")[0]))
    again, said = call("predict", "photos/", "--model", model, "--json")
    assert "reused" in said
    assert json.loads(again)["path"].startswith(f"{bucket.address()}/predictions/")
    said = call("verify")[1]
    assert "4 artifacts are whole" in said or "4 artifacts are whole" in call("verify")[0]


@pytest.mark.slow
def test_a_recipe_gives_the_digests_of_a_local_run(bucket, call):
    digests = []
    for place in ("local", bucket.address()):
        call("run", "scenes-kmeans", "--workspace", place)
        rows = json.loads(call("list", "--json", "--workspace", place)[0])
        digests.append({row["id"]: (row["key"], row["digest"]) for row in rows})
    assert digests[0] == digests[1]
    assert len(digests[1]) == 4


def test_a_dry_run_writes_nothing_into_the_bucket(bucket, call):
    place = ("--workspace", bucket.address())
    words = ("run", "scenes-kmeans", "--dry-run", "--json", *place)
    assert not any(stage["reused"] for stage in json.loads(call(*words)[0])["stages"])
    assert bucket.keys() == []


def test_several_processes_of_one_machine_share_cache_and_claims(bucket, call, blocks):
    words = (
        "extract",
        f"{blocks}/",
        "--size",
        48,
        "--backbone",
        "untrained",
        "--workers",
        0,
        "--device",
        "cpu",
    )
    local, _ = call(*words, "--json", "--workspace", "local")
    made, _ = call(*words, "--json", "--devices", 2, "--workspace", bucket.address())
    assert json.loads(made)["digest"] == json.loads(local)["digest"]
    assert len(bucket.keys("published/")) == 1


def test_options_of_the_cache_need_an_address(call):
    assert "--cache and --cache-size have no effect" in call("list", "--cache", "x", code=2)[1]
