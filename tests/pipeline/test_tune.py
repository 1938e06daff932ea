"""`tune`: the candidates, what fails among them, and what is chosen."""

import csv
import json
import shlex

import numpy as np
import pytest
from fixtures.pictures import save

RECIPE = """
name = "small"
description = "a small one"

[data]
dataset = "tiles/"

[tune]
"extract.layer" = [-1, [-1, -3]]
"clusters.seed" = [0, 1]

[[stage]]
command = "extract"
backbone = "tiny"
size = 64

[[stage]]
command = "pseudolabel"
id = "clusters"
method = "kmeans"
classes = 3

[[stage]]
command = "train"
set = { steps = 5 }

[[stage]]
command = "predict"
"""


@pytest.fixture
def here(tmp_path):
    """A folder with a recipe and some pictures of two colours, in halves of many directions."""
    folder = tmp_path / "here"
    for number in range(6):
        rng = np.random.default_rng(number)
        y, x = np.mgrid[0:64, 0:64] - 32
        turned = np.cos(number) * x + np.sin(number) * y > 0
        pixels = np.where(turned[..., None], (200, 60, 40), (30, 90, 180)) + rng.integers(0, 20, (64, 64, 3))
        save(folder / "tiles" / f"{number}.png", pixels.astype(np.uint8))
    (folder / "small.toml").write_text(RECIPE)
    return folder


def manifest(here, path):
    return json.loads((here / path / "manifest.json").read_text())


def test_the_best_candidate_becomes_the_model_and_a_table_a_plot_and_a_sheet_are_left(call, here):
    path, said = call("tune", "small.toml", "--judged", 5, "--workers", 0)
    summary = manifest(here, path)["summary"]
    rows = summary["candidates"]
    assert [row["name"] for row in rows] == [
        "small extract.layer=-1 clusters.seed=0",
        "small extract.layer=-1 clusters.seed=1",
        "small extract.layer=[-1,-3] clusters.seed=0",
        "small extract.layer=[-1,-3] clusters.seed=1",
    ]
    assert summary["images"] == 5
    best = rows[summary["best"]]
    assert best["criterion"] == max(row["criterion"] for row in rows)
    for row in rows:
        assert row["contrast"] > 1.5  # two colours, and classes of them
        assert row["agreement"] > 0.1
        of_place = 1 if summary["has_place"] else (1 - row["told_by_place"]) ** 2
        expected = row["contrast"] * row["agreement"] * of_place
        assert row["criterion"] == pytest.approx(expected, rel=1e-3)
    assert best["rank"] == 1
    current = json.loads((here / "unsupseg-workspace" / "current.json").read_text())
    assert current["model"]["*last*"] == best["model"]
    told = " ".join(said.split())
    assert f"best: {best['name']}" in told
    command = told.split("The whole recipe: `")[1].split("`")[0]
    assert "small.toml" in command
    with (here / path / "candidates.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in table] == [1, 2, 3, 4]
    assert {row["model"] for row in table} == {row["model"] for row in rows}
    assert (here / path / "sheet.png").exists()
    assert (here / path / "candidates.png").exists()
    assert call("tune", "small.toml", "--judged", 5, "--workers", 0, "--quiet") == (path, "")  # reused
    again, said = call("tune", "small.toml", "--judged", 5, "--workers", 0, "--force")
    assert again == path
    assert "model 'tiles-kmeans3-seed0-" in said
    assert said.count("written in") == 1  # the tuning alone
    said = call(*shlex.split(command)[1:], "--workers", 0)[1]
    assert f"model '{best['model']}' reused" in said


def test_a_candidate_that_fails_is_told_and_left_out(call, here):
    vary = [word for k in (2, 3, 5000) for word in ("--vary", f"clusters.classes={k}")]
    path, said = call("tune", "small.toml", *vary, "--workers", 0)
    told = " ".join(said.split())
    assert "warning: left out: small clusters.classes=5000: " in told
    assert "the candidates have 2 to 3 classes" in told
    assert len(manifest(here, path)["summary"]["candidates"]) == 2


def test_a_choice_needs_two_that_came_out(call, here):
    said = call("tune", "small.toml", "--vary", "extract.layer=-1", "--vary", "extract.layer=-99", code=1)[1]
    assert "left out: small extract.layer=-99: --layer -99 is outside -6 to -1" in said
    assert "1 of 2 candidates came out" in said


def test_two_settings_that_mean_the_same_are_one(call, here):
    vary = [word for value in ("-1,-3", "-3,-1", "-1") for word in ("--vary", f"extract.layer={value}")]
    path, said = call("tune", "small.toml", *vary, "--workers", 0)
    assert "it is the model of 'small extract.layer=-1,-3'" in " ".join(said.split())
    assert len(manifest(here, path)["summary"]["candidates"]) == 2


def test_the_candidates_can_be_looked_at_first_and_a_budget_draws_some(call, here):
    said = call("tune", "small.toml", "--dry-run", "--budget", 3)[1]
    assert "3 of 4 candidates are tried: --budget 3" in said
    assert "small extract.layer=-1 clusters.seed=0" in said
    assert not (here / "unsupseg-workspace").exists()


def test_what_is_set_is_no_longer_tried(call, here):
    said = call("tune", "small.toml", "--set", "clusters.seed=7", "--dry-run")[1]
    assert said == "small extract.layer=-1 small extract.layer=[-1,-3]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "extract.layer=-1"], "nothing to choose among"),
        (["--vary", "extract.layr=-1", "--vary", "extract.layr=-2"], "did you mean 'layer'"),
        (["--vary", "graph.knn=1", "--vary", "graph.knn=2"], "no recipe here has a stage 'graph'"),
        (["--set", "clusters.seed=3", "--vary", "clusters.seed=1"], "exclude each other"),
        (["--set", "graph.knn=1"], "--set graph.knn: no recipe here has a stage 'graph'"),
        (["--vary", "layer=1", "--vary", "layer=2"], "no recipe here has a stage 'layer'"),
        (["--vary", "extract.layer=-1", "--vary", "extract.layer=-1"], "given twice"),
        (["--vary", "extract.layer"], "is not of the form"),
        (["--budget", 1], "greater than or equal to 2"),
    ],
)
def test_what_cannot_be_tried_is_said(call, here, arguments, message):
    said = call("tune", "small.toml", *arguments, "--workers", 0, code=2)[1]
    assert message in " ".join(said.split())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('"graph.knn" = [1, 2]', "[tune], graph.knn: no recipe here has a stage 'graph'"),
        ('"extract.layer" = []', "[tune], extract.layer: there is no value to try"),
        ('"extract.layer" = -1', "small.toml"),
        ('"extract.layr" = [-1, -2]', "did you mean 'layer'"),
    ],
)
def test_what_a_recipe_cannot_try_is_said_with_the_place(call, here, table, message):
    text = RECIPE.replace('"extract.layer" = [-1, [-1, -3]]', table).replace('"clusters.seed" = [0, 1]\n', "")
    (here / "small.toml").write_text(text)
    assert message in call("tune", "small.toml", "--workers", 0, code=2)[1]


def test_recipes_of_one_name_are_told_apart_by_their_files(call, here):
    (here / "other.toml").write_text(RECIPE.replace("classes = 3", "classes = 2"))
    vary = ("--vary", "extract.layer=-1")
    said = call("tune", "small.toml", "other.toml", *vary, "--dry-run")[1]
    assert "small.toml extract.layer=-1" in said
    assert "other.toml extract.layer=-1" in said
    assert "named twice" in call("tune", "small.toml", "small.toml", *vary, code=2)[1]


def test_an_unreadable_image_is_told_and_left_out(call, here):
    (here / "tiles" / "broken.png").write_bytes(b"no picture")
    path, said = call(
        "tune", "small.toml", "--vary", "train.seed=0", "--vary", "train.seed=1", "--workers", 0
    )
    assert "unreadable images left out of the comparison: 1" in said
    assert manifest(here, path)["summary"]["images"] == 6


def test_images_of_candidates_must_be_the_same(call, here):
    save(here / "others" / "a.png", np.zeros((64, 64, 3), np.uint8))
    save(here / "others" / "b.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    vary = ["--vary", "extract.dataset=tiles/", "--vary", "extract.dataset=others/"]
    said = call("tune", "small.toml", *vary, "--workers", 0, code=2)[1]
    assert "made from different images" in " ".join(said.split())
