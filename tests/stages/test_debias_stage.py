"""`extract --debias`: in the key, in the model's chain, and chosen by the images."""

import json
from pathlib import Path

import numpy as np
from fixtures.pictures import save
from PIL import Image

RECIPE = """
name = "auto"
description = "tokens as the images ask for"
[[stage]]
command = "extract"
dataset = "above/"
size = 64
workers = 0
backbone = "untrained"
debias = "auto"
"""


def write(folder, placed, count=9):
    """Write noise, or noise below a bright upper half."""
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 60, (64, 64, 3), np.uint8)
        pixels[:32] += np.uint8(180) if placed else np.uint8(0)
        save(folder / f"{number}.png", pixels)


def manifest(here, path):
    return json.loads((here / path / "manifest.json").read_text())


def test_directions_are_in_the_key_and_the_model_brings_them(call, tmp_path):
    here = tmp_path / "here"
    write(here / "tiles", placed=False)
    common = ("extract", "--dataset", "tiles/", "--size", 64, "--workers", 0, "--backbone", "tiny")
    plain, _ = call(*common)
    assert "debias" not in manifest(here, plain)["config"]  # as before there was the option
    debiased, _ = call(*common, "--debias", 5)
    assert manifest(here, debiased)["config"]["debias"] == 5
    masks, _ = call("pseudolabel", "--features", debiased, "--classes", 2)
    model, _ = call("train", "--pseudolabels", masks, "--set", "steps=3")
    assert json.loads((here / model / "model.json").read_text())["backbone"]["debias"] == 5
    codes, _ = call("extract", "--dataset", "tiles/", "--size", 64, "--workers", 0, "--model", model)
    assert manifest(here, codes)["config"]["debias"] == 5
    whole, _ = call("predict", "tiles", "--model", model, "--workers", 0)
    stored, _ = call("predict", "--model", model, "--features", debiased)
    maps = [sorted((here / path / "ids").rglob("*.png")) for path in (whole, stored)]
    assert len(maps[0]) == 9
    agreed = [
        (np.asarray(Image.open(a)) == np.asarray(Image.open(b))).mean() for a, b in zip(*maps, strict=True)
    ]
    assert np.mean(agreed) > 0.98  # stored tokens are rounded
    assert "--debias 0 instead of 5" in call("predict", "--model", model, "--features", plain, code=2)[1]
    assert "expected a whole number, or 'auto'" in call(*common, "--debias", "often", code=2)[1]
    assert "outside 0 to 191" in call(*common, "--debias", 200, code=2)[1]


def test_auto_takes_directions_out_where_images_show_the_same_everywhere(call, tmp_path):
    here = tmp_path / "here"
    write(here / "above", placed=False)
    write(here / "street", placed=True)
    write(here / "few", placed=False, count=3)
    common = ("--size", 64, "--workers", 0, "--backbone", "untrained", "--debias", "auto")
    chosen = {}
    for name in ("above", "street", "few"):
        path, said = call("extract", "--dataset", f"{name}/", *common)
        chosen[name] = manifest(here, path)["config"].get("debias", 0)
        assert "debias: " in said
    assert chosen == {"above": 20, "street": 0, "few": 0}
    above, _ = call("extract", "--dataset", "above/", *common[:-1], 20)
    assert above == call("extract", "--dataset", "above/", *common)[0]  # auto enters the key as what it chose


def test_what_auto_found_is_remembered_and_a_dry_run_knows_it(call, tmp_path):
    here = tmp_path / "here"
    write(here / "above", placed=False)
    (here / "auto.toml").write_text(RECIPE)
    plan = ("run", "auto.toml", "--dry-run", "--json")
    assert not json.loads(call(*plan)[0])["stages"][0]["reused"]
    assert not list(here.rglob("places.json"))
    path, first = call("run", "auto.toml")
    assert json.loads(call(*plan)[0])["stages"][0]["reused"]
    again, said = call("run", "auto.toml")
    assert again == path
    assert told(first) == told(said)
    (here / Path(path).parents[1] / "places.json").write_text('{"damaged": [')
    assert call("run", "auto.toml")[0] == path


def told(said):
    return said.partition("debias: ")[2].partition("variance")[0]


def test_images_that_cannot_be_read_tell_nothing(call, tmp_path):
    here = tmp_path / "here"
    write(here / "above", placed=False, count=9)
    for number in range(3):
        path = here / "above" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:300])
    common = ("--size", 64, "--workers", 0, "--backbone", "untrained", "--debias", "auto")
    path, said = call("extract", "--dataset", "above/", *common)
    assert "fewer than 8 images, tokens stay" in said
    assert "debias" not in manifest(here, path)["config"]


def test_auto_leaves_tokens_alone_whose_backbone_adds_no_place(call, tmp_path):
    here = tmp_path / "here"
    write(here / "above", placed=False)
    common = ("extract", "--dataset", "above/", "--size", 64, "--workers", 0, "--backbone", "tiny")
    path, said = call(*common, "--debias", "auto")
    assert "adds no place to its tokens" in said
    assert path == call(*common)[0]
