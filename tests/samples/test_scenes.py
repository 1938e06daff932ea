"""The bundled scenes: complete, well-formed, and what the committed script renders."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SAMPLES = Path(__file__).parents[2] / "samples"
SCENES = SAMPLES / "scenes"
SPLITS = {"train": 96, "val": 32}


def load_renderer():
    spec = importlib.util.spec_from_file_location("render_scenes", SAMPLES / "render_scenes.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["render_scenes"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def renderer():
    return load_renderer()


@pytest.fixture(scope="module")
def classes():
    return json.loads((SCENES / "classes.json").read_text())


@pytest.fixture(scope="module")
def labels():
    return {
        split: {
            path.stem: np.asarray(Image.open(path))
            for path in sorted((SCENES / "labels" / split).glob("*.png"))
        }
        for split in SPLITS
    }


@pytest.mark.parametrize("split", SPLITS)
def test_every_picture_has_labels_of_its_size(split, labels):
    pictures = {path.stem: Image.open(path) for path in (SCENES / "images" / split).glob("*.jpg")}
    assert len(pictures) == SPLITS[split]
    assert pictures.keys() == labels[split].keys()
    for stem, picture in pictures.items():
        assert picture.mode == "RGB"
        assert picture.size == labels[split][stem].shape[::-1], stem
    assert len({picture.size for picture in pictures.values()}) >= 4
    assert any(picture.height > picture.width for picture in pictures.values())


def test_class_list_is_consistent(classes):
    rows = classes["classes"]
    assert [row["id"] for row in rows] == list(range(len(rows)))
    assert len({row["name"] for row in rows}) == len({tuple(row["color"]) for row in rows}) == len(rows)
    assert all(row["kind"] in ("stuff", "thing") for row in rows)
    assert all(len(row["color"]) == 3 and all(0 <= c <= 255 for c in row["color"]) for row in rows)
    assert classes["void"] == [255]


def test_label_files_carry_the_class_colours(classes):
    picture = Image.open(SCENES / "labels" / "train" / "street_000.png")
    assert picture.mode == "P"
    palette = np.array(picture.getpalette()).reshape(-1, 3)
    for row in classes["classes"]:
        if row["id"] < len(palette):
            assert palette[row["id"]].tolist() == row["color"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_class_is_present_and_void_is_rare(split, labels, classes):
    counts = sum(np.bincount(label.ravel(), minlength=256) for label in labels[split].values())
    known = [row["id"] for row in classes["classes"]]
    assert set(np.flatnonzero(counts)) == {*known, 255}
    assert counts[255] < 0.04 * counts.sum()
    assert counts[known].min() > 0.005 * counts.sum()
    assert counts.max() < 0.35 * counts.sum()


def test_all_files_are_small():
    assert sum(path.stat().st_size for path in SCENES.rglob("*") if path.is_file()) < 8e6


@pytest.mark.parametrize("scene", [("val", "nature", 1), ("train", "waterfront", 6), ("val", "aerial", 2)])
def test_rendering_again_gives_the_committed_files(renderer, scene):
    assert renderer.check((SCENES, *scene)) is None


def test_rendering_is_deterministic_and_scenes_differ(renderer):
    first, again, other = (renderer.render("val", "waterfront", number) for number in (0, 0, 1))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert first[1].shape != other[1].shape or not np.array_equal(first[1], other[1])


def test_check_reports_changed_labels_and_missing_files(renderer, tmp_path):
    job = (tmp_path, "val", "waterfront", 0)
    assert "missing" in renderer.check(job)
    renderer.write(job)
    assert renderer.check(job) is None
    label_path = renderer.paths(*job)[1]
    label = np.array(Image.open(label_path))
    label[0, 0] = (label[0, 0] + 1) % 10
    Image.fromarray(label).save(label_path)
    assert "labels differ" in renderer.check(job)


def test_settling_keeps_majorities_and_voids_ties(renderer):
    samples = np.array([[1, 1, 2, 3], [1, 5, 2, 3]], np.uint8)
    assert renderer.settle(samples).tolist() == [[1, 255]]
