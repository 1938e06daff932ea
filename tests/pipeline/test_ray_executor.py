"""`--executor ray` on a cluster of two nodes in this machine: the same artifacts as without."""

import socket
import threading
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from unsupseg_cli import Context, ExtractConfig, extract
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.core.errors import UsageError

pytest.importorskip("ray", reason="needs the extra ray")

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


def test_two_nodes_make_the_artifact_of_one_process_and_one_bar(folder, whole, tmp_path, address):
    heard = Heard()
    context = Context(Workspace(tmp_path / "w"), heard)
    made = extract(config(folder, executor="ray", address=address), context)
    assert (made.id, made.manifest.digest) == (whole.id, whole.manifest.digest)
    assert heard.bars["extract"] == [IMAGES, IMAGES]
    assert sum("written in" in line for line in heard.lines) == 1
    assert sum(line.startswith("shard") for line in heard.lines) == 1  # the other one published
    assert context.workspace.leftovers() == []
    assert not list((tmp_path / "w").glob(".seen-*"))
    again = extract(config(folder, executor="ray", address=address), context)
    assert again.id == made.id
    assert f"features '{made.id}' reused" in heard.lines
    assert extract(config(folder), context).manifest.started == made.manifest.started


def kill_a_worker(workspace, killed):
    """End an actor of the cluster as soon as a block is finished."""
    while not list(workspace.glob("features/.partial-*/done/block-*")):
        time.sleep(0.002)
    for process in psutil.process_iter(["name", "cmdline"]):
        if any("Worker.perform" in part for part in process.info["cmdline"] or ()):
            process.kill()
            killed.append(process.pid)
            return


def test_a_worker_that_is_killed_in_the_middle_is_replaced(folder, whole, tmp_path, address):
    heard, killed = Heard(), []
    thread = threading.Thread(target=kill_a_worker, args=(tmp_path / "w", killed), daemon=True)
    thread.start()
    made = extract(config(folder, executor="ray", address=address), Context(Workspace(tmp_path / "w"), heard))
    thread.join(10)
    assert killed
    assert any("died: another one goes on with it" in line for line in heard.lines)
    assert made.manifest.digest == whole.manifest.digest


def test_what_fails_on_an_actor_is_told_as_here(tmp_path, address):
    context = Context(Workspace(tmp_path / "w"))
    with pytest.raises(UsageError, match="nowhere"):
        extract(config(tmp_path / "nowhere", executor="ray", address=address), context)


def test_a_cluster_that_is_not_there_is_told_in_bounded_time(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(UsageError, match=rf"No Ray cluster can be used at '{nowhere}' .*give --address"):
        extract(config(folder, executor="ray", address=nowhere), Context(Workspace(tmp_path)))
    assert time.monotonic() - start < 30
    assert list(tmp_path.iterdir()) == []
