"""`--executor ray` on a cluster of two nodes in this machine: the same artifacts as without."""

import json
import re
import shlex
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from fixtures.documents import ROOT
from fixtures.short import SHORT
from PIL import Image

from unsupseg_cli import Context, ExtractConfig, PseudolabelConfig, extract, pseudolabel
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.methods.kmeans.config import PseudolabelOptions
from unsupseg_cli.pipeline.executor import executor

pytest.importorskip("ray", reason="needs the extra ray")
from unsupseg_cli.pipeline import ray_executor  # isort: skip

IMAGES = 150  # three blocks of 64 views


@pytest.fixture(scope="module")
def address():
    """The address of a cluster of two nodes with a core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 255, (2, 3, 3), np.uint8)
        Image.fromarray(pixels).resize((24, 16)).save(root / f"{number:03d}.png")
    return root


def config(folder, **fields):
    given = {"dataset": f"{folder}/", "size": 16, "workers": 0, "backbone": "tiny", "device": "cpu"}
    return ExtractConfig(**given | fields)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    return extract(config(folder), Context(Workspace(tmp_path_factory.mktemp("whole"))))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A workspace with features of 520 images: three parts of a pass over all tokens."""
    root = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for number in range(520):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(root / f"{number:03d}.png")
    workspace = Workspace(tmp_path_factory.mktemp("parts"))
    return workspace, extract(config(root), Context(workspace))


class Heard:
    """A reporter that remembers lines and bars."""

    def __init__(self):
        self.lines, self.bars = [], {}

    def info(self, message):
        self.lines.append(message)

    warn = info

    def track(self, items, description, total=None, done=0):
        self.bars[description] = [total, done]
        for item in items:
            yield item
            self.bars[description][1] += 1


@pytest.mark.slow
def test_two_nodes_make_the_artifact_of_one_process_and_one_bar(folder, whole, tmp_path, address):
    heard = Heard()
    context = Context(Workspace(tmp_path / "w"), heard)
    made = extract(config(folder, executor="ray", address=address), context)
    assert (made.id, made.manifest.digest) == (whole.id, whole.manifest.digest)
    total, done = heard.bars["extract"]
    assert done == IMAGES
    assert abs(total - IMAGES) <= 64  # a shard that has not begun may have a block more or less
    assert sum("written in" in line for line in heard.lines) == 1
    assert sum(line.startswith("shard") for line in heard.lines) == 1  # the other one published
    assert context.workspace.leftovers() == []
    assert not list((tmp_path / "w").glob(".seen-*"))
    assert extract(config(folder), context).manifest.started == made.manifest.started


def kill_a_worker(workspace, killed):
    """End an actor of the cluster as soon as the draft is begun."""
    while not killed:
        workers = [
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if any("Worker.perform" in part for part in process.info["cmdline"] or ())
        ]
        if workers and list(workspace.glob("features/.partial-*")):
            workers[0].kill()
            killed.append(workers[0].pid)
        time.sleep(0.002)


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_is_replaced(folder, whole, tmp_path, address, monkeypatch):
    heard, killed = Heard(), []
    thread = threading.Thread(target=kill_a_worker, args=(tmp_path / "w", killed), daemon=True)
    thread.start()
    context = Context(Workspace(tmp_path / "w"), heard)
    with executor("ray", address) as perform:
        made = perform(extract, config(folder, devices=3), context)  # one more than there are
        thread.join(10)
        assert killed
        assert any("died: another one goes on with it" in line for line in heard.lines)
        assert made.manifest.digest == whole.manifest.digest
        assert perform(extract, config(folder), context).manifest.started == made.manifest.started
        assert f"features '{made.id}' reused" in heard.lines
        with pytest.raises(UsageError, match="nowhere"):  # what fails on an actor is told as here
            perform(extract, config(tmp_path / "nowhere"), context)
        with pytest.raises(UsageError, match="remove the old artifact"):
            perform(extract, config(folder), replace(context, force=True))
        with pytest.raises(UsageError, match="names a device of this machine"):
            perform(extract, config(folder, device="cuda:1"), context)
        monkeypatch.setattr(ray_executor, "_PATIENCE_SECONDS", 1)
        with pytest.raises(UnsupsegError, match="the cluster has no free GPU"):
            perform(extract, config(folder, device="cuda"), context)


@pytest.mark.slow
def test_actors_share_the_passes_of_kmeans_over_all_tokens(parts, tmp_path, address):
    workspace, features = parts
    options = PseudolabelOptions(sample="all", restarts=1, iterations=3)
    chosen = PseudolabelConfig(features=features.id, classes=3, sheet=0)
    other = Workspace(shutil.copytree(workspace.root, tmp_path / "other"))
    here = pseudolabel(chosen, Context(other), options=options)
    on_actors = chosen.model_copy(update={"executor": "ray", "address": address})
    there = pseudolabel(on_actors, Context(workspace), options=options)
    assert (there.id, there.manifest.digest) == (here.id, here.manifest.digest)


SMALL = {"extract.size": 32, "pseudolabel.sample": 500, "pseudolabel.restarts": 1, "train.steps": 5}


@pytest.mark.slow
def test_a_recipe_runs_on_actors_as_it_runs_here(call, tmp_path, address):
    given = ["run", "scenes-kmeans", "--workers", 0]
    for name, value in SMALL.items():
        given += ["--set", f"{name}={value}"]
    call(*given, "--workspace", tmp_path / "here")
    path, said = call(*given, "--workspace", tmp_path / "there", "--executor", "ray", "--address", address)
    assert path.startswith(str(tmp_path / "there"))
    assert "mIoU" in said
    here, there = (list(Workspace(tmp_path / name).artifacts()) for name in ("here", "there"))
    assert len(here) == 4
    assert [(made.id, made.manifest.digest) for made in here] == [
        (made.id, made.manifest.digest) for made in there
    ]
    shared = ("--executor", "ray", "--address", address, "--workspace", tmp_path / "there")
    views = ("--dataset", "scenes", "--split", "val", "--size", 32, "--backbone", "tiny", "--workers", 0)
    features, _ = call("extract", *views, *shared)
    stored, _ = call("eval", "--features", features, "--json", *shared)
    (scored,) = (made for made in here if made.manifest.kind == "evaluation")
    assert json.loads(stored)["summary"]["images"] == scored.manifest.summary["images"]


@pytest.mark.documents
def test_the_commands_of_the_page_on_scaling_run_on_a_cluster(call, blocks, address):
    Path("photos").symlink_to(blocks)
    Path("unsupseg.toml").write_text(SHORT)
    lines = re.findall(
        r"^unsupseg .* --address HEAD:6379$", (ROOT / "docs/scaling.md").read_text(), re.MULTILINE
    )
    assert [shlex.split(line)[1] for line in lines] == ["extract", "run"]
    for line in lines:
        path, _ = call(*shlex.split(line.replace("HEAD:6379", address))[1:])
    assert Path(path, "manifest.json").exists()


def node(**changes):
    found = {
        "host": "far",
        "versions": ray_executor.versions_here(),
        "sees_workspace": True,
        "sees_folder": True,
    }
    return ray_executor.Node(**found | changes)


def test_a_node_that_does_not_fit_this_machine_is_refused(tmp_path):
    ray_executor.require_fitting(node(), tmp_path)
    for name in ("Python", "torch", "unsupseg"):
        other = ray_executor.versions_here() | {name: "0.0"}
        with pytest.raises(
            UsageError, match=f"'far' has {name} 0.0, and this machine .* Nothing was published"
        ):
            ray_executor.require_fitting(node(versions=other), tmp_path)
    with pytest.raises(UsageError, match=f"'far' does not see the workspace '{tmp_path}'"):
        ray_executor.require_fitting(node(sees_workspace=False), tmp_path)
    with pytest.raises(UsageError, match=r"'far' has no folder .* in which this command was called"):
        ray_executor.require_fitting(node(sees_folder=False), tmp_path)


def test_an_actor_looks_for_the_folders_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_executor, "_DISK_SECONDS", 0.1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").touch()
    worker = ray_executor.Worker(1)
    seen = worker.look(tmp_path, tmp_path / "token")
    assert (seen.sees_folder, seen.sees_workspace) == (True, True)
    seen = worker.look(tmp_path / "other", tmp_path / "other" / "token")
    assert (seen.sees_folder, seen.sees_workspace) == (False, False)


def test_calls_that_an_executor_cannot_do_are_refused(call, folder, monkeypatch):
    photos = f"{folder}/"
    assert "no effect" in call("extract", photos, "--address", "a:1", code=2)[1]
    said = call("extract", photos, "--executor", "ray", "--shard", "1/2", code=2)[1]
    assert "the executor makes all shards" in said
    assert "ray" in call("extract", photos, "--executor", "dask", code=2)[1]
    monkeypatch.setattr("unsupseg_cli.core.options.find_spec", lambda name: None)
    assert "pip install 'unsupseg[ray]'" in call("extract", photos, "--executor", "ray", code=2)[1]


@pytest.mark.parametrize(
    ("nodes", "gpus", "shares"),
    [
        ([{"CPU": 4}, {"CPU": 8}, {"memory": 1}], False, (4, 3)),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 16, "GPU": 1}, {"CPU": 2}], True, (8, 9)),
        ([{"CPU": 2}], True, (1, 0)),  # before an autoscaling cluster has started a GPU
    ],
)
def test_a_device_comes_with_its_share_of_the_cores(monkeypatch, nodes, gpus, shares):
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    gone = {"Alive": False, "Resources": {"CPU": 1, "GPU": 1}}
    monkeypatch.setattr(ray_executor.ray, "nodes", lambda: [*alive, gone])
    assert ray_executor._share(gpus) == shares
