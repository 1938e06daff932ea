"""Every labeller and every trainer: its key holds what it reads and nothing else, and it reads what it declares."""

import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unsupseg_cli import (
    Context,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    TrainConfig,
    Workspace,
    extract,
    predict,
    pseudolabel,
    train,
)
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.contents import mask_writer, method_inputs
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.label_maps import read_ids
from unsupseg_cli.contents.model import open_model
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.declaration import Needs
from unsupseg_cli.methods.interface import Inputs
from unsupseg_cli.methods.registry import get_method
from unsupseg_cli.models.linear_model import LinearModel
from unsupseg_cli.pipeline.export import export
from unsupseg_cli.pipeline.options import ExportConfig
from unsupseg_cli.pipeline.stage import perform, settle
from unsupseg_cli.pipeline.table import get_stage
from unsupseg_cli.training.loop import EXPLAINED

from other_values import other_values  # isort: skip

HERE = {"workers": 0, "device": "cpu"}
SMALL = {
    "steps": 3,
    "epochs": 1,
    "batch": 2,
    "restarts": 2,
    "init_restarts": 2,
    "sample": 500,
    "cycle_steps": 2,
}
"""Options of methods that make their work short, for those that have them."""


def crops_of(pictures, labels):
    return ExtractConfig(
        dataset=f"{pictures}/",
        split="train",
        size=16,
        backbone="untrained",
        regions="masks",
        pseudolabels=labels,
        keep=("cls", "pooled"),
        workers=0,
        device="cpu",
    )


def masks_of(world, method="kmeans"):
    return pseudolabel(PseudolabelConfig(method=method, classes=3, sheet=0, workers=0), world).id


@pytest.fixture
def work(part, world, pictures):
    """The stage of a part, its configuration and short options, and what the call reads in place."""
    command, method, declared = part
    options = declared.options(**{name: SMALL[name] for name in SMALL.keys() & declared.options.model_fields})
    stage = get_stage(command)
    fields = {"device": "cpu", "workers": 0, "classes": 3, "method": method.name}
    roles = {port.role: port for port in options.needs().reads}
    if command == "pseudolabel":
        config = PseudolabelConfig(**fields, part=declared.name or None, sheet=0)
    else:
        config = TrainConfig(**fields)
    given = {}
    if "pseudolabels" in roles:
        given["pseudolabels"] = masks_of(world, roles["pseudolabels"].method or "kmeans")
    if {"pseudolabels", "regions"} <= roles.keys() and not roles["pseudolabels"].method:
        anchors = world.workspace.current("regions")
        given["regions"] = extract(crops_of(pictures, given["pseudolabels"]), world).id
        world.workspace.take([anchors])  # what is not named is the last one
    if options.needs().model == "scores":
        model = TrainConfig(method="kmeans", pseudolabels=given["pseudolabels"], device="cpu", workers=0)
        given["model"] = train(model, world).id
    config = config.model_copy(update=given)
    return SimpleNamespace(stage=stage, config=config, options=options, needs=options.needs())


def key(work, world, options=None, **changes):
    """Return the key of a call with other options; inputs that it then does not read are left out."""
    options = options or work.options
    read = {port.role for port in options.needs().reads}
    unread = work.stage.roles.keys() - read
    if "pseudolabels" in read - {port.role for port in work.needs.reads}:  # by this option only
        changes["pseudolabels"] = masks_of(world)
    config = work.config.model_copy(update={**dict.fromkeys(unread), **changes})
    call = settle(work.stage, config, world, options)
    return work.stage.identify(call).key


def changed(options, stage_config, name):
    """Return the options with another value of one of them that fits, and without those that it makes ineffective."""
    for value in other_values(type(options), name, getattr(options, name)):
        try:
            other = type(options)(**{**options.model_dump(), name: value})
        except ValueError:
            continue
        dropped = other.ineffective(stage_config).keys() - {name}
        return type(options)(**other.model_dump(exclude=dropped))
    raise AssertionError(f"no other value of '{name}' is known to this test")


def test_the_key_changes_with_every_option_that_is_read_and_the_others_are_refused(work, world):
    whole = key(work, world)
    for name in type(work.options).model_fields:
        options = changed(work.options, work.config, name)
        if name in work.options.unread(work.config):
            with pytest.raises(UsageError, match="no effect"):
                key(work, world, options)
        else:
            assert key(work, world, options) != whole, name


def test_classes_and_seed_are_in_the_key_where_they_are_declared(work, world):
    whole = key(work, world)
    for name, value in (("classes", 4), ("seed", 7)):
        assert (key(work, world, **{name: value}) != whole) == (name in work.needs.identity)


def test_how_the_work_is_done_is_not_in_the_key(work, world):
    whole = key(work, world)
    elsewhere = {"tensorboard", "executor", "address"}
    for name in type(work.config).execution_fields() - work.stage.roles.keys() - elsewhere:
        value = {"device": "cpu", "workers": 1, "sheet": 3, "devices": 2, "shard": "1/2"}[name]
        assert key(work, world, **{name: value}) == whole


def test_other_inputs_give_another_key(work, world, pictures):
    current = world.workspace.current("features")
    context = Context(world.workspace)
    config = ExtractConfig(
        dataset=f"{pictures}/", split="train", size=16, backbone="untrained", workers=0, device="cpu"
    )
    other = extract(config, context)
    world.workspace.take([current])
    call = settle(work.stage, work.config, world, work.options)
    swapped = replace(call, inputs={**call.inputs, "features": other}, memory={})
    assert work.stage.identify(swapped).key != work.stage.identify(call).key


def test_what_is_declared_is_read_and_nothing_else(work, world, tmp_path, monkeypatch):
    """Options are read but for those said to be unread; of the inputs what is declared, which all are given."""
    read = set()

    class Recorded(type(work.options)):
        def __getattribute__(self, name):
            if name in type(work.options).model_fields:
                read.add(name)
            return super().__getattribute__(name)

    asked = set()
    declared = Inputs._declared

    def recording(self, name):
        asked.add(name)
        return declared(self, name)

    monkeypatch.setattr(Inputs, "_declared", recording)
    opened = method_inputs.open_inputs
    given = {}

    def opening(*arguments, **named):
        inputs = opened(*arguments, **named)
        given.update(inputs._given)
        return inputs

    monkeypatch.setattr(method_inputs, "open_inputs", opening)
    options = Recorded(**work.options.model_dump())
    call = settle(work.stage, work.config, world, options)
    work.stage.identify(call)
    read.clear()
    work.stage.fill(call, Draft(tmp_path / "draft"))
    unread = work.options.unread(work.config).keys()
    assert type(work.options).model_fields.keys() - read <= unread, "options that are never read"
    assert not read & unread - {"init"}, "options that are read though they are said to have no effect"
    assert given.keys() == asked, "declared, and never read"


def test_shards_of_a_labeller_are_of_one_fit(work, world, tmp_path, monkeypatch):
    if work.stage.name != "pseudolabel":
        pytest.skip("a trainer")
    monkeypatch.setattr(mask_writer, "views_per_block", lambda *_: 2)
    contexts = []
    for name in ("whole", "shards"):
        shutil.copytree(world.workspace.root, tmp_path / name)
        contexts.append(Context(Workspace(tmp_path / name)))
    whole = perform(work.stage, work.config, contexts[0], options=work.options)

    def make(shard):
        config = work.config.model_copy(update={"shard": shard})
        return perform(work.stage, config, contexts[1], options=work.options)

    assert make("2/3") is None
    labeller = settle(work.stage, work.config, contexts[1], work.options).part.load()
    if "learned" in vars(labeller):
        monkeypatch.setattr(labeller, "fit", lambda self: pytest.fail("fitted again"))
    assert make("1/3") is None
    made = make("3/3")
    assert (made.id, made.manifest.digest) == (whole.id, whole.manifest.digest)
    assert made.manifest.summary == whole.manifest.summary
    assert made.manifest.warnings == whole.manifest.warnings


def test_two_processes_train_the_weights_of_one(work, world, tmp_path):
    if work.stage.name != "train":
        pytest.skip("a labeller")
    weights, options = [], work.options
    if "batch" in type(options).model_fields:
        options = options.model_copy(update={"batch": 3})  # of which the processes take two and one
    for devices in (1, 2):
        config = work.config.model_copy(update={"devices": devices})
        call = settle(work.stage, config, world, options)
        draft = Draft(tmp_path / f"draft-{devices}")
        work.stage.fill(call, draft)
        weights.append(load_file(draft.folder / "model.safetensors"))
    figures = set().union(*map(json.loads, (draft.folder / "metrics.jsonl").read_text().splitlines()))
    explained = {"step", *EXPLAINED, *call.part.load().explained}
    assert figures <= explained, "figures whose curves nobody understands"
    alone, together = weights
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)


UNDER_TORCHRUN = """
import os, pickle, signal, sys, time
from pathlib import Path
from unsupseg_cli import Context, Workspace
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.pipeline.stage import perform
from unsupseg_cli.pipeline.table import get_stage
from unsupseg_cli.training import loop

class Told(Silent):
    def info(self, message):
        print(message, file=sys.stderr)

if len(sys.argv) > 2:  # the second process is killed in the last step
    take = loop._Run.step

    def step(run, number, *rest):
        if os.environ["RANK"] == "1" and number == run.schedule.steps - 1:
            end = time.monotonic() + 60
            while not list(Path(root).glob("model/.partial-*/checkpoint/state.pt")) and time.monotonic() < end:
                time.sleep(0.1)  # the first process saves it
            os.kill(os.getpid(), signal.SIGKILL)
        take(run, number, *rest)

    loop._Run.step, loop._Run.is_time_to_save = step, lambda run: True
root, config, options = pickle.load(open(sys.argv[1], "rb"))
perform(get_stage("train"), config, Context(Workspace(root), Told()), options=options)
"""


def under_torchrun(call, *arguments):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    return subprocess.run(
        [sys.executable, *launcher, sys.executable, "-c", UNDER_TORCHRUN, str(call), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_two_processes_of_torchrun_of_which_one_is_killed_train_the_weights_of_one(work, world, tmp_path):
    if work.stage.name != "train":
        pytest.skip("a labeller")
    options = work.options
    if "batch" in type(options).model_fields:
        options = options.model_copy(update={"batch": 3})
    one, two = (shutil.copytree(world.workspace.root, tmp_path / name) for name in ("one", "two"))
    alone = perform(work.stage, work.config, Context(Workspace(one)), options=options)
    (tmp_path / "call").write_bytes(pickle.dumps((two, work.config, options)))
    killed = under_torchrun(tmp_path / "call", "killed")
    assert killed.returncode == 1
    assert "Signal 9 (SIGKILL)" in killed.stderr
    run = under_torchrun(tmp_path / "call")
    assert run.returncode == 0, run.stderr
    assert "going on after step" in run.stderr
    assert "Warning" not in run.stderr
    together = Workspace(two).current("model")
    assert together.id == alone.id
    expected, found = (load_file(model.path / "model.safetensors") for model in (alone, together))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def require_one_answer(model, world, path, tmp_path):
    """Check that a network gives the same classes in an ONNX file, mirrored, in one tile and in several."""
    image = np.asarray(Image.open(path))
    opened = open_model(model, world, torch.device("cpu"), precision="fp32")
    segmenter = opened.segmenter
    if isinstance(segmenter, LinearModel):
        pytest.skip("a linear model: tests/stages/test_export.py")
    file = export(ExportConfig(out=tmp_path / "model.onnx", frame=image.shape[:2]), model.id, world)
    labels, log_probs = onnxruntime.InferenceSession(file).run(None, {"frame": image[None]})
    (view,) = opened.geometry.views(*image.shape[:2], segmenter.multiple)
    shown = opened.geometry.render(image, view)
    (scores,) = segmenter.score(shown[None])
    ours = segmenter.log_probs(scores, *scores.scores.shape[-2:])
    assert np.abs(log_probs[0] - ours.numpy()).mean() < 0.02  # pixels are resized within the graph
    predicted = predict(PredictConfig(images=(path,), model=model.id, precision="fp32", **HERE), world)
    assert np.mean(read_ids(predicted.path, predicted.manifest.summary["keys"][0]) == labels[0]) > 0.98

    height, width = shown.shape[:2]
    (one,) = segmenter.score(shown[None], flip=True)
    (mirror,) = segmenter.score(shown[:, ::-1].copy()[None], flip=True, box=(1.0, 0.0, 0.0, 1.0))
    found = segmenter.log_probs(one, height, width)
    torch.testing.assert_close(
        segmenter.log_probs(mirror, height, width).flip(-1), found, atol=1e-3, rtol=1e-3
    )
    whole = segmenter.score_tiled(shown, max(height, width), flip=True)
    torch.testing.assert_close(segmenter.log_probs(whole, height, width), found, atol=1e-3, rtol=1e-3)
    side, cells = 16 // segmenter.multiple * segmenter.multiple, segmenter.stride
    tiled = segmenter.score_tiled(shown, side, overlap=0).scores
    for top, left in itertools.product(range(0, height - side + 1, side), range(0, width - side + 1, side)):
        box = (left / width, top / height, (left + side) / width, (top + side) / height)
        (tile,) = segmenter.score(shown[top : top + side, left : left + side].copy()[None], box=box)
        place = slice(top // cells, (top + side) // cells), slice(left // cells, (left + side) // cells)
        torch.testing.assert_close(tiled[:, *place], tile.scores, atol=1e-4, rtol=1e-4)


def test_a_trained_network_says_one_thing_in_a_graph_mirrored_and_in_tiles(work, world, pictures, tmp_path):
    if work.stage.name != "train":
        pytest.skip("a labeller")
    model = perform(work.stage, work.config, world, options=work.options)
    require_one_answer(model, world, pictures / "images" / "val" / "0.png", tmp_path)


def test_a_network_on_pixels_says_one_thing_in_a_graph_mirrored_and_in_tiles(world, pictures, tmp_path):
    options = (
        get_method("maskdistill")
        .require_trainer()
        .options(arch="deeplabv3_resnet50", resnet="random", epochs=1, batch=2)
    )
    config = TrainConfig(method="maskdistill", classes=3, pseudolabels=masks_of(world), **HERE)
    model = train(config, world, options=options)
    require_one_answer(model, world, pictures / "images" / "val" / "0.png", tmp_path)


def test_query_key_and_attention_reach_a_method(world):
    features = next(one for one in world.workspace.artifacts("features") if FeatureSet(one).has("attention"))
    needs = Needs(arrays=("query", "key", "attention"))
    artifacts = {"features": features}
    given = method_inputs.open_inputs(artifacts, needs, world, torch.device("cpu"), classes=3, seed=0)
    for name in needs.arrays:
        for view, values in zip((4, 1), given.features.array(name, [4, 1]), strict=True):
            torch.testing.assert_close(values, FeatureSet(features).array(name, [view])[0])
            assert values.std() > 0


def test_an_array_that_was_not_kept_is_asked_for(work, pictures, tmp_path):
    if not work.needs.arrays:
        pytest.skip("the part reads no array of the features, so none can be missing")
    context = Context(Workspace(tmp_path / "w"))
    config = ExtractConfig(
        dataset=f"{pictures}/",
        split="train",
        size=32,
        backbone="untrained",
        workers=0,
        device="cpu",
        keep="cls",
    )
    artifacts = {"features": extract(config, context)}
    with pytest.raises(UsageError, match=f"--keep cls,{work.needs.arrays[0]}"):
        method_inputs.open_inputs(artifacts, work.needs, context, torch.device("cpu"), classes=3, seed=0)


def test_a_file_that_an_option_names_is_in_the_key_by_its_content(world, tmp_path):
    labels = pseudolabel(PseudolabelConfig(classes=3, sheet=0, workers=0), world)
    weights, stage = tmp_path / "resnet.safetensors", get_stage("train")
    config = TrainConfig(method="maskdistill", classes=3, pseudolabels=labels.id, device="cpu")
    declared = get_method("maskdistill").require_trainer()
    options = declared.options(arch="deeplabv3_resnet50", resnet=str(weights))

    def identity():
        return stage.identify(settle(stage, config, world, options))

    weights.write_bytes(b"one")
    first = identity()
    weights.write_bytes(b"other")
    assert identity().key != first.key
    weights.write_bytes(b"one")
    assert identity().key == first.key
    assert str(tmp_path) not in str(first.config)
