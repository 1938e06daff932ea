"""`extract --layer` with several blocks: in the key, in the model's chain, in what is foreseen."""

import json

import numpy as np
from fixtures.pictures import save
from PIL import Image


def manifest(here, path):
    return json.loads((here / path / "manifest.json").read_text())


def test_several_layers_are_in_the_key_and_the_model_brings_them(call, tmp_path):
    here = tmp_path / "here"
    for number in range(5):
        save(
            here / "tiles" / f"{number}.png",
            np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8),
        )
    common = ("extract", "--dataset", "tiles/", "--size", 64, "--workers", 0, "--backbone", "tiny")
    last, _ = call(*common, "--layer", -1)
    several, _ = call(*common, "--layer", "-3,-1")
    assert call(*common, "--layer", "-1,-3")[0] == several
    assert manifest(here, last)["config"]["layer"] == -1
    assert manifest(here, several)["config"]["layer"] == [-1, -3]
    channels = [manifest(here, path)["summary"]["dim"] for path in (last, several)]
    assert channels[1] == 2 * channels[0]
    masks, _ = call("pseudolabel", "--features", several, "--classes", 2)
    model, _ = call("train", "--pseudolabels", masks, "--set", "steps=3")
    assert json.loads((here / model / "model.json").read_text())["backbone"]["layer"] == [-1, -3]
    codes, _ = call("extract", "--dataset", "tiles/", "--size", 64, "--workers", 0, "--model", model)
    assert manifest(here, codes)["config"]["layer"] == [-1, -3]
    whole, _ = call("predict", "tiles", "--model", model, "--workers", 0)
    stored, _ = call("predict", "--model", model, "--features", several)
    maps = [
        np.stack([np.asarray(Image.open(file)) for file in sorted((here / path / "ids").rglob("*.png"))])
        for path in (whole, stored)
    ]
    assert maps[0].shape == (5, 64, 64)
    assert np.mean(maps[0] == maps[1]) > 0.98  # stored tokens are rounded
    said = call("predict", "--model", model, "--features", last, code=2)[1]
    assert "--layer -1 instead of -1,-3" in " ".join(said.split())
    assert "--layer -1,-3" in " ".join(said.split("extract")[-1].split())
    for wrong in ("0", "-1,x", "-1,-400", ""):
        assert "several such as -1,-3" in " ".join(call(*common, "--layer", wrong, code=2)[1].split())
    assert "outside -6 to -1" in " ".join(call(*common, "--layer", "-1,-40", code=2)[1].split())
