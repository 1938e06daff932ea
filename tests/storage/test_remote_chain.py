"""The chain from images to scores by two machines that share a bucket and nothing else, each stage in shards."""

import json

import numpy as np
import pytest
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
from unsupseg_cli.inference import tally
from unsupseg_cli.methods.kmeans.config import PseudolabelOptions, TrainOptions
from unsupseg_cli.stages.graph import GraphConfig
from unsupseg_cli.training import all_tokens

ON_CPU = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven labelled pictures, one of which is damaged."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(7):
        label = np.zeros((32, 48), np.uint8)
        label[:, 6 * number :] = 1
        pixels = (np.array([[40, 90, 220], [60, 160, 60]])[label] + rng.normal(0, 12, (32, 48, 3))).clip(
            0, 255
        )
        for kind, array in (("images", pixels.astype(np.uint8)), ("labels", label)):
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(root / kind / f"{number}.png")
    (root / "classes.json").write_text(json.dumps({"classes": ["sky", "grass"], "void": [255]}))
    damaged = root / "images" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    return root


def calls(photos):
    """Yield the stages of the chain and their configurations."""
    yield extract, ExtractConfig(dataset=f"{photos}/", size=32, backbone="untrained", **ON_CPU)
    yield graph, GraphConfig(neighbors=2, device="cpu")
    yield pseudolabel, PseudolabelConfig(classes=2, **ON_CPU)
    yield train, TrainConfig(**ON_CPU)
    yield predict, PredictConfig(keep="scores", **ON_CPU)
    yield refine, RefineConfig(workers=0)
    yield evaluate, EvalConfig(**ON_CPU)


def test_every_stage_is_made_by_two_machines(bucket, machine, photos, tmp_path, monkeypatch):
    for module in (shards, tally):
        monkeypatch.setattr(module, "IMAGES", 2)
    monkeypatch.setattr(neighbours, "_PART", 2)
    monkeypatch.setattr(mask_writer, "views_per_block", lambda *_: 2)
    local, one, two = Context(Workspace(tmp_path / "local")), Context(machine("one")), Context(machine("two"))
    for stage, config in calls(photos):
        options = {"options": TrainOptions(steps=3, restarts=1, batch=2)} if stage.name == "train" else {}
        whole = stage(config, local, **options)
        if stage.divides:
            shared = [config.model_copy(update={"shard": f"{number}/2"}) for number in (1, 2)]
            if stage.name != "extract":  # of one block
                assert stage(shared[0], one) is None
            made = stage(shared[1], two) or stage(shared[0], one)
        else:
            made = stage(config, one, **options)
        assert (made.id, made.manifest.digest) == (whole.id, whole.manifest.digest)
        assert made.manifest.summary == whole.manifest.summary
        assert made.manifest.warnings == whole.manifest.warnings
        assert machine("three").verify(machine("three").get(made.id)) == []
    assert machine("three").leftovers(shared=True) == []


def test_a_fit_that_another_machine_left_is_gone_on_with(bucket, machine, photos, tmp_path, monkeypatch):
    """What it learned of parts of the collection is in the bucket, in the middle of a pass."""
    monkeypatch.setattr(all_tokens, "_LEAST_VIEWS", 1)
    monkeypatch.setattr(all_tokens, "_BLOCK", 1)
    make, parts = all_tokens._AllTokens._pass, []

    def stopping(fit, centroids, part):
        if len(parts) == stop_after:
            raise KeyboardInterrupt
        parts.append(part)
        return make(fit, centroids, part)

    monkeypatch.setattr(all_tokens._AllTokens, "_pass", stopping)
    features = ExtractConfig(dataset=f"{photos}/", size=32, backbone="untrained", **ON_CPU)
    local, one, two = Context(Workspace(tmp_path / "local")), Context(machine("one")), Context(machine("two"))
    config, options = PseudolabelConfig(classes=2, **ON_CPU), PseudolabelOptions(sample="all")
    stop_after = None
    for context in (local, one):
        extract(features, context)
    whole = pseudolabel(config, local, options=options)
    count, parts, stop_after = len(parts), [], 8
    with pytest.raises(KeyboardInterrupt):
        pseudolabel(config.model_copy(update={"shard": "1/2"}), one, options=options)
    stop_after = None
    made = [
        pseudolabel(config.model_copy(update={"shard": f"{number}/2"}), two, options=options)
        for number in (2, 1)
    ]
    assert len(parts) == count
    assert made[-1] is not None
    assert (made[-1].id, made[-1].manifest.digest) == (whole.id, whole.manifest.digest)
    assert machine("three").leftovers(shared=True) == []
