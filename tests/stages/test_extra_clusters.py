"""More clusters than classes: what each matching makes of those left over, and that the result says so."""

import json

import numpy as np
import pytest
from PIL import Image

from unsupseg_cli import (
    Context,
    EvalConfig,
    ExtractConfig,
    PseudolabelConfig,
    TrainConfig,
    Workspace,
    evaluate,
    extract,
    pseudolabel,
    train,
)
from unsupseg_cli.methods.kmeans.config import TrainOptions


@pytest.fixture
def photos(tmp_path):
    """Four pictures of three colours, of which labels call two the same."""
    for number in range(4):
        stripes = (np.arange(96) // 32)[None].repeat(64, 0).astype(np.uint8)
        noise = np.random.default_rng(number).integers(-30, 30, (64, 96, 3))
        pixels = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])[stripes] + noise
        for kind, values in (("images", pixels), ("labels", stripes)):
            (tmp_path / "photos" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / "photos" / kind / f"{number}.png")
    classes = {"classes": ["a", {"name": "b", "ids": [1, 2]}]}
    (tmp_path / "photos" / "classes.json").write_text(json.dumps(classes))
    return tmp_path / "photos"


def test_the_pixels_of_extra_clusters_are_errors_dropped_or_merged(photos, tmp_path):
    context = Context(Workspace(tmp_path / "work"))
    common = {"workers": 0, "device": "cpu"}
    features = extract(ExtractConfig(dataset=f"{photos}/", size=64, backbone="untrained", **common), context)
    masks = pseudolabel(PseudolabelConfig(features=features.id, classes=3, sheet=0), context)
    model = train(TrainConfig(pseudolabels=masks.id, device="cpu"), context, options=TrainOptions(steps=20))
    rules = ("hungarian", "stego-extra", "primaps-extra", "majority")
    made = {}
    for rule in rules:
        config = EvalConfig(model=model.id, dataset=f"{photos}/", matching=rule, sheet=0, **common)
        made[rule] = evaluate(config, context)
    scores = {rule: made[rule].manifest.summary for rule in rules}
    pixels = scores["hungarian"]["labelled_pixels"]
    assert [scores[rule]["protocol"]["matching"] for rule in rules] == list(rules)
    assert scores["primaps-extra"]["accuracy"] > scores["hungarian"]["accuracy"]
    assert scores["primaps-extra"]["labelled_pixels"] == pixels
    assert scores["stego-extra"]["labelled_pixels"] < pixels
    (said,) = [text for text in made["stego-extra"].manifest.warnings if "leaves out" in text]
    share = 1 - scores["stego-extra"]["labelled_pixels"] / pixels
    assert f"leaves out {share:.1%} of the labelled pixels, those of clusters from 2 on" in said
    assert not any("leaves out" in text for rule in rules[2:] for text in made[rule].manifest.warnings)
