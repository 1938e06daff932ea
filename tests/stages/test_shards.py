"""--shard and --devices of every stage that divides: the artifact of one process, whoever makes which part."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unsupseg_cli import (
    Context,
    EvalConfig,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    RefineConfig,
    TrainConfig,
    Workspace,
    evaluate,
    extract,
    graph,
    predict,
    pseudolabel,
    refine,
    train,
)
from unsupseg_cli.clustering import neighbours
from unsupseg_cli.contents import mask_writer
from unsupseg_cli.core import shards
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.shards import Shard, parse_shard
from unsupseg_cli.inference import tally
from unsupseg_cli.methods.kmeans.config import PseudolabelOptions, TrainOptions
from unsupseg_cli.pipeline.table import entries, get_stage
from unsupseg_cli.stages.graph import GraphConfig

ON_CPU = {"device": "cpu", "workers": 0}
CALLS = {
    "graph": (graph, GraphConfig(neighbors=3, device="cpu")),
    "pseudolabel": (pseudolabel, PseudolabelConfig(classes=4, **ON_CPU)),
    "pseudolabel-all": (
        partial(pseudolabel, options=PseudolabelOptions(sample="all")),
        PseudolabelConfig(classes=4, **ON_CPU),
    ),
    "predict": (predict, PredictConfig(flip=True, keep="scores", **ON_CPU)),
    "predict-tokens": (predict, PredictConfig(features="FEATURES", flip=False, **ON_CPU)),
    "eval": (evaluate, EvalConfig(sheet=3, **ON_CPU)),
    "eval-crf": (evaluate, EvalConfig(crf=True, matching="per-image", **ON_CPU)),
    "eval-predictions": (evaluate, EvalConfig(predictions="PREDICTIONS", sheet=20, **ON_CPU)),
    "refine": (refine, RefineConfig(workers=0)),
    "refine-masks": (refine, RefineConfig(pseudolabels="PSEUDOLABELS", workers=0)),
}
"""What divides, by a name of the test's."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine labelled pictures, one of them long and narrow, one without a label, and one whose end is missing."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(9):
        rng = np.random.default_rng(number)
        label = np.zeros((32, 400 if number == 4 else 48), np.uint8)
        label[16:], label[:, : 8 + 3 * number] = 1, 2
        colors = np.array([[40, 90, 220], [60, 160, 60], [220, 60, 40]])[label]
        pixels = (colors + rng.normal(0, 12, colors.shape)).clip(0, 255).astype(np.uint8)
        for kind, array in (("images", pixels), ("labels", label)):
            (root / kind).mkdir(exist_ok=True)
            if (kind, number) != ("labels", 6):
                Image.fromarray(array).save(root / kind / f"{number}.png")
    (root / "classes.json").write_text(json.dumps({"classes": ["sky", "grass", "box"], "void": [255]}))
    damaged = root / "images" / "5.png"
    damaged.write_bytes(damaged.read_bytes()[:200])  # its header is whole
    return root


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """A workspace with features, a model, soft predictions and soft pseudo-labels."""
    context = Context(Workspace(tmp_path_factory.mktemp("made")))
    extract(ExtractConfig(dataset=f"{photos}/", size=32, backbone="untrained", **ON_CPU), context)
    pseudolabel(PseudolabelConfig(classes=3, sheet=0, **ON_CPU), context)
    train(TrainConfig(**ON_CPU), context, options=TrainOptions(steps=3, restarts=1, batch=2))
    pseudolabel(PseudolabelConfig(method="primaps", keep="scores", sheet=0, **ON_CPU), context)
    undamaged = tmp_path_factory.mktemp("undamaged")
    shutil.copytree(photos, undamaged, dirs_exist_ok=True)
    for kind in ("images", "labels"):
        (undamaged / kind / "5.png").unlink()
    predict(PredictConfig(dataset=f"{undamaged}/", **ON_CPU), context)
    predict(PredictConfig(keep="scores", **ON_CPU), context)
    return context


@pytest.fixture
def small_parts(monkeypatch):
    """Cut the work into many parts."""
    monkeypatch.setattr(shards, "IMAGES", 2)
    monkeypatch.setattr(tally, "IMAGES", 2)
    monkeypatch.setattr(neighbours, "_PART", 3)
    monkeypatch.setattr(mask_writer, "views_per_block", lambda *_: 2)


@pytest.fixture(params=CALLS)
def work(request, made, tmp_path):
    """A function that makes a call of a stage in a workspace of a name, which begins with what was made before."""
    stage, config = CALLS[request.param]
    ids = {text: made.workspace.current(text.lower()).id for text in ("FEATURES", "PSEUDOLABELS")}
    predictions = made.workspace.artifacts("predictions")
    whole = next(
        each for each in predictions if "undamaged" in each.manifest.data.root
    )  # both may be of one second
    ids["PREDICTIONS"] = whole.id
    given = {name: ids[value] for name, value in config if isinstance(value, str) and value in ids}

    def call(name, **changes):
        if not (tmp_path / name).exists():
            shutil.copytree(made.workspace.root, tmp_path / name)
        context = Context(Workspace(tmp_path / name))
        return stage(config.model_copy(update={**given, **changes}), context)

    return call


def told(artifact):
    """Return what users see of an artifact."""
    manifest = artifact.manifest
    return artifact.id, manifest.digest, manifest.summary, manifest.warnings, sorted(manifest.outputs)


def test_shards_in_turn_make_the_artifact_of_one_process(work, small_parts, tmp_path):
    whole = work("whole")
    assert work("shards", shard="3/3") is None
    assert work("shards", shard="1/3") is None
    assert told(work("shards", shard="2/3")) == told(whole)
    assert not list(tmp_path.glob("shards/*/.partial-*"))


def test_a_call_without_shards_goes_on_with_those_that_are_finished(work, small_parts):
    assert work("shards", shard="2/2") is None
    assert told(work("shards")) == told(work("whole"))


def test_two_devices_make_the_artifact_of_one(work):
    assert told(work("devices", devices=2)) == told(work("whole"))


@pytest.mark.parametrize("shard", [None, "1/1"])
def test_what_is_made_aside_is_not_what_calls_take(context, blocks, shard):
    config = ExtractConfig(dataset=str(blocks), backbone="tiny", size=32, workers=0, shard=shard)
    artifact = extract(config, replace(context, current=False))
    assert context.workspace.find_current("features") is None
    assert extract(config, context).id == artifact.id
    assert context.workspace.current("features").id == artifact.id


def test_every_stage_with_parts_is_tried_here():
    tried = {name.partition("-")[0] for name in CALLS} | {"extract"}
    assert tried == {name for name in entries() if get_stage(name).divides}


def test_what_divides_is_not_made_by_force_or_twice(work, made):
    with pytest.raises(UsageError, match="--shard '3/2' is not of the form i/n"):
        work("refused", shard="3/2")
    with pytest.raises(UsageError, match="--shard and --devices do not go together"):
        work("refused", shard="1/2", devices=2)


def test_an_image_that_changes_meanwhile_stops_its_shard(made, photos, tmp_path, small_parts, monkeypatch):
    """What was counted of it is not kept: the next call, with another key, counts anew."""
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    context = Context(Workspace(made.workspace.root))
    count = tally.Tally.update

    def changing(self, pair, **options):
        count(self, pair, **options)
        (copy / "labels" / "1.png").write_bytes((copy / "labels" / "2.png").read_bytes())

    with monkeypatch.context() as patched:
        patched.setattr(tally.Tally, "update", changing)
        with pytest.raises(UnsupsegError, match=r"1\.png' was changed while it was in use"):
            evaluate(EvalConfig(dataset=f"{copy}/", split="all", shard="1/2", **ON_CPU), context)
    assert not list(context.workspace.root.glob("evaluation/.partial-*/done/block-*"))


def test_strict_stops_at_an_unreadable_image_in_any_shard(made, small_parts):
    config = PredictConfig(tile=32, strict=True, **ON_CPU)
    context = Context(Workspace(made.workspace.root))
    predict(config.model_copy(update={"shard": "1/3"}), context)
    with pytest.raises(UnsupsegError, match="--strict stops"):
        predict(config.model_copy(update={"shard": "3/3"}), context)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "", "1/2/3", "²/3"])
def test_a_shard_is_i_of_n(text):
    with pytest.raises(UsageError, match="is not of the form i/n"):
        parse_shard(text)


@given(count=st.integers(0, 3000), of=st.integers(1, 40))
def test_shards_are_disjoint_have_all_and_share_evenly(count, of):
    images = list(range(count))
    taken = [Shard(number, of).take_images(images) for number in range(1, of + 1)]
    assert sorted(image for part in taken for image in part) == images
    share = math.ceil(count / of)
    assert max(map(len, taken)) <= share + math.ceil(count / (of * 64))  # the parts are rounded up


def test_images_beside_each_other_go_to_a_shard_together():
    assert Shard(1, 7).take_images(range(1000))[:40] == list(range(40))
    assert [Shard(number, 4).take_images(range(100)) for number in (1, 4)] == [
        [*range(25)],
        [*range(75, 100)],
    ]


def test_help_tells_of_shards_where_there_are_some():
    for name in ("graph", "pseudolabel", "predict", "eval", "refine", "extract"):
        fields = get_stage(name).config.model_fields
        assert {"shard", "devices", "executor", "address"} <= fields.keys()
