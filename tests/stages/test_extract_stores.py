"""The two stores, and several processes that write one artifact."""

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from unsupseg_cli import Context, ExtractConfig, PseudolabelConfig, TrainConfig, extract, pseudolabel, train
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.methods.kmeans.config import TrainOptions as KMeansTrain

IMAGES = 150  # three blocks of 64 views


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


def test_hdf5_is_one_file_with_the_same_content(folder, whole, tmp_path):
    context = Context(Workspace(tmp_path / "h"))
    packed = extract(config(folder, store="hdf5"), context)
    assert (packed.manifest.key, packed.manifest.digest) == (whole.manifest.key, whole.manifest.digest)
    assert sorted(path.name for path in packed.path.iterdir() if not path.name.startswith(".")) == [
        "arrays.h5",
        "manifest.json",
        "sheet.png",
        "views.parquet",
    ]
    one, two = FeatureSet(whole), FeatureSet(packed)
    for view in (0, 70, IMAGES - 1):
        assert (one.tokens([view])[0] == two.tokens([view])[0]).all()
    assert (one.rows("pooled") == two.rows("pooled")).all()
    assert (one.grids == two.grids).all()
    pseudolabel(PseudolabelConfig(classes=3, sheet=0), context)
    model = train(TrainConfig(device="cpu"), context, options=KMeansTrain(steps=2, restarts=1))
    assert model.input("features").key == whole.manifest.key


def test_shards_in_turn_make_the_artifact_of_one_process(folder, whole, tmp_path):
    context = Context(Workspace(tmp_path / "s"))
    assert extract(config(folder, shard="2/2"), context) is None
    assert list(context.workspace.artifacts()) == []
    made = extract(config(folder, shard="1/2"), context)
    assert made.manifest.digest == whole.manifest.digest
    assert context.workspace.leftovers() == []
    again = extract(config(folder, shard="2/2"), context)
    assert again.id == made.id


def command(folder, workspace, *more):
    main = "from unsupseg_cli.cli.main import main; main()"
    options = f"--size 16 --workers 0 --backbone tiny --device cpu -w {workspace}".split()
    return [sys.executable, "-c", main, "extract", "--dataset", f"{folder}/", *options, *more]


@pytest.mark.slow
def test_two_processes_write_disjoint_shards_at_once(folder, whole, tmp_path):
    calls = [command(folder, tmp_path / "p", "--shard", f"{i}/2") for i in (1, 2)]
    processes = [subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for call in calls]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()
    (made,) = Workspace(tmp_path / "p").artifacts()
    assert made.manifest.digest == whole.manifest.digest


def test_two_devices_make_the_artifact_of_one(folder, whole, tmp_path):
    context = Context(Workspace(tmp_path / "d"))
    made = extract(config(folder, devices=2), context)
    assert (made.id, made.manifest.digest) == (whole.id, whole.manifest.digest)
    assert context.workspace.leftovers() == []
    assert extract(config(folder), context).id == made.id
    with pytest.raises(UsageError, match="do not go together"):
        extract(config(folder, devices=2, shard="1/2"), context)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_call_with_two_devices_that_is_stopped_goes_on(folder, whole, tmp_path, stop):
    call = subprocess.Popen(command(folder, tmp_path / "k", "--devices", "2"), stderr=subprocess.DEVNULL)
    while not list((tmp_path / "k").glob("features/.partial-*/done/block-*")) and call.poll() is None:
        time.sleep(0.005)
    helpers = psutil.Process(call.pid).children(recursive=True)
    assert helpers
    call.send_signal(stop)
    call.wait(timeout=60)
    _, alive = psutil.wait_procs(helpers, timeout=10)
    assert not alive
    made = extract(config(folder, devices=2), Context(Workspace(tmp_path / "k")))
    assert made.manifest.digest == whole.manifest.digest


def test_an_error_on_one_of_two_devices_is_the_error_of_the_call(folder, tmp_path):
    broken = tmp_path / "photos"
    shutil.copytree(folder, broken)
    (broken / "100.png").write_bytes((broken / "100.png").read_bytes()[:60])  # its header is whole
    context = Context(Workspace(tmp_path / "b"))
    with pytest.raises(UnsupsegError, match=r"100\.png"):
        extract(config(broken, devices=2, strict=True), context)
    assert list(context.workspace.artifacts()) == []
    assert extract(config(broken, devices=2), context).manifest.summary["images"] == IMAGES - 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_shard_is_i_of_n(folder, tmp_path, shard):
    with pytest.raises(UsageError, match="form i/n"):
        extract(config(folder, shard=shard), Context(Workspace(tmp_path)))
