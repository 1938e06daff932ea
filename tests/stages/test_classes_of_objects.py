"""The number of classes where masks are objects before a background: theirs, and one."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.pictures import save

OBJECTS = ((220, 40, 40), (40, 200, 60), (50, 60, 230))
SIDE = 64


@pytest.fixture
def photos():
    """Objects of three colours, a quarter of each picture, before backgrounds of many; masks of them, and of a side."""
    inside = slice(SIDE // 4, -SIDE // 4)
    for number in range(12):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (4, 4, 3)).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
        pixels[inside, inside] = OBJECTS[number % 3]
        save(Path(f"photos/{number:02d}.png"), pixels.astype(np.uint8))
        masks = np.zeros((2, SIDE, SIDE), np.uint8)
        masks[0, inside, inside] = 1
        masks[1, :, : SIDE // 2] = 1
        for name, mask in zip(("objects", "sides"), masks, strict=True):
            save(Path(name, f"{number:02d}.png"), mask)


@pytest.fixture
def features(call, photos):
    """Extract the features of the photos."""
    return call("extract", "photos", "--backbone", "untrained", "--size", 2 * SIDE, "--workers", 0)[0]


def masks_of(call, name):
    path, _ = call("import-masks", name, "--dataset", "photos/")
    return Path(path).name


def summary(path):
    return json.loads((Path(path) / "manifest.json").read_text())["summary"]


def labelled(call, masks, *options):
    chosen = ("--method", "spectral", "--masks", masks, "--set", "draws=1", *options)
    path, said = call("pseudolabel", "--classes", "auto", *chosen)
    return json.loads((Path(path) / "manifest.json").read_text()), said


def test_the_number_is_that_of_the_objects_and_one(call, features):
    masks = masks_of(call, "objects")
    plain, _ = call("classes", "scan", "--range", "2-12")
    made, said = call("classes", "scan", "--range", "2-12", "--masks", masks)
    assert "the background is one more" in said
    assert summary(made)["classes"] == len(OBJECTS) + 1
    assert summary(plain)["classes"] != len(OBJECTS) + 1
    assert [row["classes"] for row in summary(made)["rows"]] == [
        row["classes"] + 1 for row in summary(plain)["rows"]
    ]
    assert (Path(made) / "sheet.png").exists()


def test_a_method_with_a_background_takes_that_number_and_so_does_its_training(call, features):
    masks = masks_of(call, "objects")
    labels, said = labelled(call, masks, "--set", "background=auto")
    assert "the background is one more" in said
    (scan,) = Path("unsupseg-workspace/scan").iterdir()
    assert labels["config"]["classes"] == summary(scan)["classes"]
    model, said = call("train", "--classes", "auto", "--set", "steps=2")
    assert f"--classes auto: {labels['config']['classes']}, as " in said
    assert summary(model)["classes"] == labels["config"]["classes"]


def test_masks_that_are_no_objects_change_no_number(call, features):
    masks = masks_of(call, "sides")
    _, said = labelled(call, masks, "--set", "background=auto")
    assert "no objects before a background" in said
    (scan,) = Path("unsupseg-workspace/scan").iterdir()
    plain, _ = call("classes", "scan")
    assert summary(plain)["rows"] == summary(scan)["rows"]
    outside, _ = call("classes", "scan", "--masks", masks, "--outside", "background")
    assert summary(outside)["background"]


def test_masks_that_cover_hardly_anything_are_told(call, features):
    for path in Path("objects").iterdir():
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[:8, :8] = path.stem in ("00", "01")
        save(path, mask)
    masks = masks_of(call, "objects")
    _, said = call("classes", "scan", "--masks", masks, "--outside", "background", code=1)
    assert "The masks cover 2 tokens" in said
    assert "give --classes" in said


def test_a_background_without_masks_is_refused(call, features):
    _, said = call("classes", "scan", "--outside", "background", code=2)
    assert "no --pseudolabels or --masks" in said


def test_a_range_beyond_the_tokens_is_refused_with_one_that_fits(call, features):
    _, said = call("classes", "scan", "--range", "4-100", code=2)
    assert "there are 768 tokens" in said
    assert "end the range at 76" in said
    _, said = call("classes", "scan", "--range", "100-120", code=2)
    assert "extract more or larger images" in said
    _, said = call("classes", "scan", "--range", "9-4", code=2)
    assert "such as 4-30" in said
