"""What commands say of an artifact whose files are gone or damaged, and what results are never written over."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unsupseg_cli.cli.main import app


def run(space, *arguments, code=0):
    result = CliRunner().invoke(app, [*map(str, arguments), "--workspace", str(space)])
    assert result.exit_code == code, result.output
    assert "not foreseen" not in result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory, blocks):
    """A workspace with features, pseudo-labels, a model and predictions of four pictures."""
    space = tmp_path_factory.mktemp("made") / "work"
    run(space, "extract", blocks, "--backbone", "untrained", "--size", 32, "--workers", 0)
    run(space, "pseudolabel", "--classes", 3)
    run(space, "train", "--set", "steps=2")
    run(space, "predict", blocks, "--workers", 0)
    return space


@pytest.fixture
def space(made, tmp_path):
    """A copy of it that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "work"))


def one(space, pattern):
    (path,) = list(space.glob(pattern))[:1]
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_text("{}")


@pytest.mark.parametrize(
    ("pattern", "damage", "call"),
    [
        ("features/*/views.parquet", os.remove, ("graph",)),
        ("features/*/views.parquet", cut, ("pseudolabel", "--classes", 4)),
        ("pseudolabels/*/masks.parquet", cut, ("train", "--set", "steps=3")),
        ("pseudolabels/*/masks.parquet", os.remove, ("train", "--set", "steps=3")),
        ("predictions/*/classes.json", empty, ("export-labels", "--format", "coco-panoptic", "--out", "x")),
        ("predictions/*/ids/0.png.png", cut, ("export-labels", "--format", "coco-panoptic", "--out", "x")),
        (
            "predictions/*/ids/0.png.png",
            os.remove,
            ("export-labels", "--format", "coco-panoptic", "--out", "x"),
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_mends_it(
    space, blocks, monkeypatch, tmp_path, pattern, damage, call
):
    monkeypatch.chdir(tmp_path)
    path = one(space, pattern)
    damage(path)
    said = run(space, *call, code=1)
    assert f"The file '{path}' cannot be read" in said
    assert (
        "`unsupseg verify` names what is damaged, and running its stage with --force makes it again" in said
    )


def test_damaged_predictions_are_not_made_again_from_themselves(space, blocks):
    path = one(space, "predictions/*/ids/0.png.png")
    before = path.read_bytes()
    Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    assert "was changed after it was written" in run(space, "verify", code=1)
    assert "no network runs" not in run(space, "predict", blocks, "--workers", 0)
    assert path.read_bytes() == before
    run(space, "verify")


@pytest.mark.parametrize("damage", [os.remove, lambda path: path.write_bytes(b"")])
def test_classes_are_not_applied_to_damaged_label_maps(space, blocks, damage):
    run(space, "classes", "name", "0=sky")
    damage(one(space, "predictions/*/ids/0.png.png"))
    said = run(space, "predict", blocks, "--workers", 0)
    assert "no network runs" not in said, "they are predicted, not taken from what is damaged"


@pytest.mark.parametrize("text", ["\udcff\udcfe", '{"features": 3}', "[]"])
def test_a_damaged_list_of_the_last_artifacts_is_told(space, text):
    (space / "current.json").write_bytes(text.encode(errors="surrogateescape"))
    said = run(space, "pseudolabel", "--classes", 4, code=2)
    assert "Nobody knows the last features: 'current.json' in the workspace" in said
    features = one(space, "features/*").name
    run(space, "pseudolabel", "--classes", 4, "--features", features)


@pytest.mark.parametrize("content", [[], {"a": 1}])
def test_an_artifact_without_a_readable_manifest_is_told(space, blocks, content):
    manifest = one(space, "features/*/manifest.json")
    manifest.write_text(json.dumps(content))
    assert f"1 artifact left out, whose manifest cannot be read (the first: '{manifest.parent}')" in run(
        space, "list"
    )
    said = run(space, "pseudolabel", "--classes", 4, code=2)
    assert f"'{manifest.parent.name}' is damaged or of a newer version" in said
    assert "run `unsupseg extract` again with --force" in said
    run(space, "extract", blocks, "--backbone", "untrained", "--size", 48, "--workers", 0)
    said = run(space, "pseudolabel", "--classes", 4)
    assert f"features '{manifest.parent.name}' cannot be read and was passed over" in said


@pytest.mark.parametrize("name", ["classes.json", "legend.png", "ids/mine.png"])
@pytest.mark.parametrize("command", [("predict",), ("classes", "apply")])
def test_results_are_not_written_over_files_of_others(space, blocks, tmp_path, name, command):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    run(space, "classes", "name", "0=sky")
    images = (blocks, "--workers", 0) if command == ("predict",) else ()
    said = run(space, *command, *images, "--out", out, code=2)
    assert "is not of the results of an earlier call and would be written over: name another folder" in said
    assert [path.read_text() for path in out.rglob("*") if path.is_file()] == ["mine"]


def test_results_may_be_written_again_and_not_among_the_images(space, blocks, tmp_path):
    for _ in range(2):
        run(space, "predict", blocks, "--workers", 0, "--out", tmp_path / "out")
    before = sorted(blocks.rglob("*"))
    assert "is the folder of the images" in run(space, "classes", "apply", "--out", blocks, code=2)
    assert sorted(blocks.rglob("*")) == before
