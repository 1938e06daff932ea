"""`tune`: the candidates, what fails among them, and what is chosen."""

import csv
import errno
import json
import shlex

import numpy as np
import pytest
from fixtures.pictures import save

from unsupseg_cli.core.errors import UnsupsegError

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


def current(here):
    file = here / "unsupseg-workspace" / "current.json"
    return file.read_text() if file.exists() else ""


def test_the_best_candidate_becomes_the_model_and_a_table_a_plot_and_a_sheet_are_left(
    call, here, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
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
    last = {kind: names["*last*"] for kind, names in json.loads(current(here)).items()}
    model = json.loads((here / "unsupseg-workspace" / "model" / best["model"] / "manifest.json").read_text())
    assert (last["model"], last["tuning"]) == (best["model"], path.split("/")[-1])
    assert last["features"] == next(made["id"] for made in model["inputs"] if made["role"] == "features")
    table = said.split("rank candidate")[1].split("best: ")[0].split()
    words = [word for row in rows for word in row["name"].removeprefix("small ").split()]
    assert sorted(word for word in table if "=" in word) == sorted(words)  # what tells them apart, whole
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
    again, said = call("tune", "small.toml", "--judged", 5, "--workers", 0, "--quiet")  # reused
    assert again == path
    assert said.startswith("warning: 'small extract.layer=-1 clusters.seed=0', ")
    assert said.endswith("divide the images alike: they count as one in the agreement")
    again, said = call("tune", "small.toml", "--judged", 5, "--workers", 0, "--force")
    assert again == path
    assert "model 'tiles-kmeans3-seed0-" in said
    assert said.count("written in") == 1  # the tuning alone
    said = call(*shlex.split(command)[1:])[1]
    assert f"model '{best['model']}' reused" in said


_SAMPLES = ["--vary", "train.sample=500", "--vary", "train.sample=2"]


def test_a_candidate_that_fails_is_told_and_left_out(call, here):
    vary = ["--vary", "clusters.classes=2", "--vary", "clusters.classes=3"]
    path, said = call("tune", "small.toml", *vary, *_SAMPLES, "--workers", 0)
    assert "warning: left out: small clusters.classes=3 train.sample=2: k-means cannot find" in said
    assert "the candidates have 2 to 3 classes" in said
    assert len(manifest(here, path)["summary"]["candidates"]) == 3


_SEEDS = ["--vary", "clusters.seed=0", "--vary", "clusters.seed=1"]


@pytest.mark.parametrize(
    ("vary", "failure", "code", "message"),
    [
        (_SAMPLES, None, 1, "1 of 2 candidates came out"),
        (_SEEDS, UnsupsegError("not today"), 1, "not today"),
        (_SEEDS, KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_without_a_choice_commands_take_what_they_took(call, here, monkeypatch, vary, failure, code, message):
    def fail(*_):
        raise failure

    call("run", "small.toml", "--seed", 3, "--workers", 0, "--quiet")
    before = current(here)
    assert before
    if failure:
        monkeypatch.setattr("unsupseg_cli.pipeline.tune.small_maps", fail)
    said = call("tune", "small.toml", *vary, "--workers", 0, code=code)[1]
    assert message in said
    assert "candidate 2 of 2" in said
    assert current(here) == before


def test_a_full_disk_is_no_fault_of_a_candidate(call, here, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("unsupseg_cli.contents.mask_writer.MaskWriter.fill", full)
    said = call("tune", "small.toml", "--workers", 0, code=1)[1]
    assert "is full" in said
    assert "left out" not in said
    assert "candidate 2 of 4" not in said


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nowhere/"], "The folder 'nowhere' does not exist"),
        (["--vary", "extract.backbone=tiny", "--vary", "extract.backbone=huge"], "huge: No backbone 'huge'"),
        (["--backbone", "dinov2_vits14", "--weights", "none.pth"], "none.pth' does not exist"),
        (["--device", "quantum"], "--device 'quantum' is not usable"),
        (["--vary", "clusters.classes=2", "--vary", "clusters.classes=5000"], "more than the 384 patches"),
    ],
)
def test_faults_of_the_call_are_found_before_any_work(call, here, dry, arguments, message):
    code = 1 if "--weights" in arguments else 2
    said = call("tune", "small.toml", *arguments, "--workers", 0, *dry, code=code)[1]
    assert message in said
    assert "left out" not in said
    assert "candidate 1" not in said
    assert not (here / "unsupseg-workspace" / "features").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--vary", "extract.layer=-1", "--vary", "extract.layer=-99"],
            "=-99: --layer -99 is outside -6 to -1",
        ),
        (["--executor", "ray", "--address", "127.0.0.1:1"], "No Ray cluster can be used at '127.0.0.1:1'"),
    ],
)
def test_what_a_dry_run_cannot_know_is_found_before_any_work_too(call, here, arguments, message):
    if "ray" in arguments:
        pytest.importorskip("ray")
    said = call("tune", "small.toml", *arguments, code=2)[1]
    assert message in said
    assert "candidate 1" not in said
    assert not (here / "unsupseg-workspace" / "features").exists()


def test_recipes_of_different_images_ask_for_a_data_set_before_any_work(call, here):
    (here / "other.toml").write_text(
        RECIPE.replace("tiles/", "others/").replace("classes = 3", "classes = 2")
    )
    vary = ["--vary", "extract.layer=-1"]
    for dry in ([], ["--dry-run"]):
        said = call("tune", "small.toml", "other.toml", *vary, *dry, code=2)[1]
        assert "are of different images" in said
        assert "give --dataset" in said
    said = call("tune", "small.toml", "other.toml", *vary, "--dataset", "tiles/", "--dry-run")[0]
    assert "other.toml extract.layer=-1" in said


def test_settings_that_say_the_same_are_told_and_spend_no_budget(call, here):
    vary = [word for value in ("-1,-3", "-3,-1", "-1", "-2") for word in ("--vary", f"extract.layer={value}")]
    out, said = call("tune", "small.toml", *vary, "--budget", 3, "--dry-run")
    assert said == "left out: 'small extract.layer=-3,-1' says what 'small extract.layer=-1,-3' says"
    assert [line.split("  ")[0] for line in out.splitlines()[1:]] == [
        f"small extract.layer={value}" for value in ("-1,-3", "-1", "-2")
    ]
    vary = ["--vary", "extract.size=64", "--vary", "extract.size=64.0", "--vary", "extract.size=48"]
    said = call("tune", "small.toml", *vary, "--dry-run")[1]
    assert "'small extract.size=64.0' says what 'small extract.size=64' says" in said
    text = RECIPE.replace('"extract.layer" = [-1, [-1, -3]]\n', "").replace("[0, 1]", "[1, 1]")
    (here / "small.toml").write_text(text)
    said = call("tune", "small.toml", "--dry-run", code=2)[1]
    assert "nothing to choose among ('small clusters.seed=1' says what 'small clusters.seed=1' says)" in said


def test_settings_that_turn_out_to_make_one_model_are_one(call, here):
    vary = [word for value in (0, 1) for word in ("--vary", f"extract.workers={value}")]
    path, said = call("tune", "small.toml", *vary, "--vary", "clusters.seed=0", "--vary", "clusters.seed=1")
    assert "it is the model of 'small extract.workers=0 clusters.seed=0'" in said
    assert len(manifest(here, path)["summary"]["candidates"]) == 2


def test_candidates_that_divide_the_images_alike_count_as_one(call, here):
    looks = ["--vary", "extract.layer=-1", "--vary", "extract.layer=-1,-3"]
    classes = ["--vary", "clusters.classes=2", "--vary", "clusters.classes=3"]
    path, said = call("tune", "small.toml", *classes, *looks, "--workers", 0)
    for number in (2, 3):
        one, other = (f"'small clusters.classes={number} extract.layer={layer}'" for layer in ("-1", "-1,-3"))
        assert f"{one}, {other} divide the images alike: they count as one in the agreement" in said
    agreements = [row["agreement"] for row in manifest(here, path)["summary"]["candidates"]]
    assert agreements[0] == pytest.approx(agreements[1], abs=0.05)
    assert agreements[2] == pytest.approx(agreements[3], abs=0.05)
    assert max(agreements[2:]) < 0.75, (
        agreements
    )  # of three classes two confirm a part, whatever the twin says


def test_the_candidates_can_be_looked_at_first_and_a_budget_draws_some(call, here):
    out, said = call("tune", "small.toml", "--dry-run", "--budget", 3)
    assert said == "3 of 4 candidates are tried: --budget 3"
    assert "small extract.layer=-1 clusters.seed=0" in out
    assert "--set extract.layer=-1 --set clusters.seed=0" in out
    options = ("--seed", 5, "--set", "train.steps=7")
    printed, said = call("tune", "small.toml", "--dry-run", "--budget", 3, "--json", *options)
    value = json.loads(printed)
    assert value["total"] == 4
    assert [entry["name"] for entry in value["candidates"]] == [
        line.split("  ")[0] for line in out.splitlines()[1:]
    ]
    first = value["candidates"][0]
    command = shlex.split(first["command"])
    assert command[:2] == ["unsupseg", "run"]
    planned = json.loads(call(*command[1:], "--dry-run", "--json")[0])["stages"]
    assert planned[:3] == first["stages"]
    assert [stage["stage"] for stage in first["stages"]] == ["extract", "clusters", "train"]
    assert not (here / "unsupseg-workspace").exists()


@pytest.mark.parametrize("stage", ["clusters", "pseudolabel"])
def test_what_is_set_is_no_longer_tried(call, here, stage):
    out = call("tune", "small.toml", "--set", f"{stage}.seed=7", "--dry-run")[0]
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        "candidate",
        "small extract.layer=-1",
        "small extract.layer=[-1,-3]",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "extract.layer=-1"], "nothing to choose among"),
        (["--vary", "extract.layr=-1", "--vary", "extract.layr=-2"], "did you mean 'layer'"),
        (["--vary", "graph.knn=1", "--vary", "graph.knn=2"], "no recipe here has a stage 'graph'"),
        (["--set", "clusters.seed=3", "--vary", "clusters.seed=1"], "exclude each other"),
        (["--set", "pseudolabel.seed=3", "--vary", "clusters.seed=1"], "exclude each other"),
        (["--set", "graph.knn=1"], "--set graph.knn: no recipe here has a stage 'graph'"),
        (["--vary", "layer=1", "--vary", "layer=2"], "no recipe here has a stage 'layer'"),
        (["--vary", "extract.layer=-1", "--vary", "extract.layer=-1"], "'small extract.layer=-1' says what"),
        (["--vary", "extract.layer"], "--vary 'extract.layer' is not of the form STAGE.key=value"),
        (["--vary", "=3"], "--vary '=3' is not of the form STAGE.key=value"),
        (["--set", "=3"], "--set '=3' is not of the form"),
        (["--vary", "extract.=3"], "--vary 'extract.' is not of the form STAGE.key=value"),
        (["--vary", "extract.layr=-1"], "Unknown option 'layr' of stage 'extract' (--vary); did you mean"),
        (["--vary", "extract.layer=up"], "extract.layer 'up' (--vary) does not fit"),
        (["--vary", "train.lr=fast"], "train.set.lr 'fast' (--vary) does not fit"),
        (["--set", "train.lr=fast"], "train.set.lr 'fast' (command line) does not fit"),
        (["--vary", "predict.flip=true"], "--vary predict.flip: `tune` makes and compares models"),
        (["--set", "predict.flip=true"], "--set predict.flip: `tune` makes and compares models"),
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
        ('"extract.layer" = -1', "[tune], extract.layer: expected a list of the values to try, such as [-1]"),
        ('extract.layer = "x"', "[tune], extract.layer: expected a list of the values to try, such as [x]"),
        ("extract = {}", "[tune], extract: there is no value to try"),
        ("train.set.lr = [1]", "[tune], train.set: write train.OPTION = [VALUE, ...]"),
        ('extract.layer = [-1]\n"extract.layer" = [-3]', "[tune], extract.layer: it is given twice"),
        ('"extract.layr" = [-1, -2]', "of stage 'extract' ('HERE/small.toml', [tune]); did you mean 'layer'"),
        ('"extract.layer" = ["up"]', "extract.layer 'up' ('HERE/small.toml', [tune]) does not fit"),
        ('"train.lr" = ["fast"]', "train.set.lr 'fast' ('HERE/small.toml', [tune]) does not fit"),
        ('"predict.flip" = [true]', "[tune], predict.flip: `tune` makes and compares models"),
    ],
)
def test_what_a_recipe_cannot_try_is_said_with_the_place(call, here, table, message):
    text = RECIPE.replace('"extract.layer" = [-1, [-1, -3]]', table).replace('"clusters.seed" = [0, 1]\n', "")
    (here / "small.toml").write_text(text)
    said = call("tune", here / "small.toml", "--workers", 0, code=2)[1]
    assert message.replace("HERE", str(here)) in said


def test_a_key_without_quotes_says_what_one_with_them_says(call, here):
    before = call("tune", "small.toml", "--dry-run")
    (here / "small.toml").write_text(
        RECIPE.replace('"extract.layer"', "extract.layer").replace('"clusters.seed"', "clusters.seed")
    )
    assert call("tune", "small.toml", "--dry-run") == before
    varied = (here / "small.toml").read_text() + "\n[variant.other]\nextract.size = 48\n"
    (here / "small.toml").write_text(varied)
    shown = call("recipes", "show", "small.toml:other")[0]
    assert '[tune]\n"extract.layer" = [-1, [-1, -3]]\n"clusters.seed" = [0, 1]\n' in shown


def test_recipes_of_one_name_are_told_apart_by_their_files(call, here):
    (here / "other.toml").write_text(RECIPE.replace("classes = 3", "classes = 2"))
    vary = ("--vary", "extract.layer=-1")
    said = call("tune", "small.toml", "other.toml", *vary, "--dry-run")[0]
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
    assert "are of different images" in said
    assert "leave what names images out of --vary" in said
    assert not (here / "unsupseg-workspace" / "features").exists()


def test_a_file_that_is_called_like_a_bundled_recipe_is_the_one_that_is_named(call, here):
    (here / "mine.toml").write_text(RECIPE.replace('name = "small"', 'name = "best"'))
    said = json.loads(
        call(
            "tune",
            "mine.toml",
            *("--vary", "clusters.seed=0", "--vary", "clusters.seed=1"),
            "--dry-run",
            "--json",
        )[0]
    )
    assert "unsupseg run mine.toml" in json.dumps(said)
    assert "unsupseg run best" not in json.dumps(said)
