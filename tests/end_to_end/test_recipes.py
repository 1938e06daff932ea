"""Bundled recipes, end to end on small pictures in the official layouts, with `tiny` and few steps.

``make test-recipes`` runs all of them; else a few, one of each kind, the longer ones by ``make test-slow``.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures.pictures import noise, save
from fixtures.short import SHORT
from typer.testing import CliRunner

from unsupseg_cli.cli.main import app
from unsupseg_cli.pipeline.recipe import resolve
from unsupseg_cli.pipeline.recipe_file import bundled, load_recipe

QUICK = (
    "kmeans-cocostuff27-dino_vits8",
    "primaps-potsdam3-dinov2_vitb14",
    "stego-potsdam3-dino_vits8_300ep",
    "scenes-stego",
)
LONG = (
    "stego-primaps-cityscapes-dino_vitb8",
    "scenes-transfgu",
    "maskdistill-voc2012-dino_vits16",
    "scenes-context",
    "transfgu-cityscapes-dino_vits8",
)
FEW = (*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG))
WITH_DATA = [name for name in bundled() if load_recipe(name).data]
ALL = os.environ.get("UNSUPSEG_TEST_RECIPES") == "all"
SMALL = {
    "classes": 3,
    "size": 64,
    "sheet": 2,
    "steps": 3,
    "epochs": 1,
    "cycles": 2,
    "cycle_steps": 2,
    "init_epochs": 1,
    "init_batches": 1,
    "batch": 2,
    "restarts": 2,
    "iterations": 3,
    "sample": 500,
    "codes": 8,
    "feature_samples": 4,
    "resolution": 64,
    "resnet": "random",
}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """One workspace for all recipes: those that differ in the backbone alone share their artifacts here."""
    return tmp_path_factory.mktemp("recipes")


def small(name, place):
    """Return the arguments that run a recipe on little data with few steps."""
    recipe = load_recipe(name)
    dataset = recipe.data["dataset"]
    arguments = [name, "--workspace", place / "w", "--backbone", "tiny", "--workers", "0", "--device", "cpu"]
    if dataset != "scenes":
        layouts = pytest.importorskip("fixtures.layouts")
        root = place / dataset
        if not root.exists():
            layouts.build(dataset, root)
        arguments += ["--root", root]
    for step in resolve(recipe):
        options = set(type(step.options).model_fields) if step.options else set()
        unread = step.options.unread(step.config).keys() if step.options else set()
        known = (set(type(step.config).model_fields) | options) - {"seed"} - unread
        values = SMALL | ({"things": 2, "stuff": 1} if getattr(step.options, "stuff", None) else {})
        for key in values.keys() & known - ({"size"} if step.command == "predict" else set()):
            arguments += ["--set", f"{step.id}.{key}={values[key]}"]
    return [str(one) for one in arguments]


def call(*arguments):
    result = CliRunner().invoke(app, ["run", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.strip(), " ".join(result.stderr.split())


def blocks_of(page, language):
    """Return the fenced blocks of a page that are of a language."""
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["recipes.md", "why-lower.md"])
def test_the_blocks_of_a_page_run(page, place, tmp_path, monkeypatch):
    """As they stand, but for what makes a published row large: data, backbone with its weights, and steps."""
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text("".join(blocks_of("recipes.md", "toml")[:2]))
    Path("unsupseg.toml").write_text(SHORT)
    for split in ("train", "val"):
        noise(Path("photos", split), {f"{number}.png": (64, 80) for number in range(2)})
    lines = "".join(blocks_of(page, "sh")).splitlines()
    made = 0
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "unsupseg"
        if words[0] == "run":
            flags = {"--dry-run"} & set(words)
            made += not flags
            call(*small(words[1], place), *flags)
        else:
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, f"{line}: {result.output}"
    assert made


def test_the_recipe_of_the_page_runs_as_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, variant, tried = blocks_of("recipes.md", "toml")
    Path("my.toml").write_text(recipe + variant + tried)
    assert load_recipe("my.toml:large").tune == {"extract.layer": [-1, -3], "masks.restarts": [3, 10]}
    for split in ("train", "val"):
        noise(tmp_path / "photos" / split, {f"{number}.png": (64, 80) for number in range(2)})
        save(tmp_path / "photos/labels" / split / "0.png", np.zeros((64, 80), np.uint8))
    Path("classes.json").write_text('{"classes": [{"name": "sky", "id": 0}]}')
    planned = json.loads(call("my.toml:large", "--dry-run", "--json")[0])["stages"]
    assert [one["stage"] for one in planned] == ["extract", "masks", "train", "eval"]
    assert {one["images"] for one in planned} == {2}
    assert planned[0]["bytes"] == pytest.approx(2 * 40 * 50 * 768 * 2, rel=0.01)  # ViT-B, as the variant says


def _percent(value):
    return "-" if value is None else f"{value:.1f}"


@pytest.mark.parametrize("name", WITH_DATA if ALL else FEW)
def test_a_recipe_runs_from_images_to_scores(name, place):
    arguments = small(name, place)
    planned = json.loads(call(*arguments, "--dry-run", "--json")[0])["stages"]
    path, said = call(*arguments)
    summary = json.loads((Path(path) / "manifest.json").read_text())["summary"]
    assert 0 <= summary["miou"] <= 1
    assert summary["images"] > 0
    published = load_recipe(name).published
    if published.miou is not None:
        assert f"published {_percent(published.accuracy)} {_percent(published.miou)}" in said
    assert "not the setting of the recipe" in said
    again = json.loads(call(*arguments, "--dry-run", "--json")[0])["stages"]
    assert all(one["reused"] for one in again)
    for one, other in zip(planned, again, strict=True):
        assert one["artifact"] in (None, other["artifact"])  # None: the images were not read for their digest
    assert again[-1]["artifact"] == Path(path).name


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    command = "from unsupseg_cli.cli.main import main; main()"
    arguments = [sys.executable, "-c", command, "run", *small("scenes-kmeans", tmp_path)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    features = tmp_path / "w" / "features"
    deadline = time.monotonic() + 120
    while not list(features.glob("[!.]*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (made,) = features.glob("[!.]*")
    before = (made / "manifest.json").read_text()
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"features '{made.name}' reused" in done.stderr
    assert (made / "manifest.json").read_text() == before
    assert Path(done.stdout.strip()).parent.name == "evaluation"


@pytest.mark.parametrize("name", ["best", "segment"])
def test_recipes_without_data_take_any_folder(name, place, tmp_path):
    noise(tmp_path / "photos", {f"{number}.png": (64, 80) for number in range(4)})
    arguments = [name, "--dataset", f"{tmp_path}/photos/", "--workspace", place / "w", "--backbone", "tiny"]
    values = {"extract.size": 64, "clusters.classes": 3, "train.steps": 3, "clusters.restarts": 1}
    for key, value in values.items():
        arguments += ["--set", f"{key}={value}"]
    result = CliRunner().invoke(app, ["run", *map(str, arguments), "--workers", "0", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert len(list(Path(result.stdout.strip()).glob("ids/**/*.png"))) == 4
