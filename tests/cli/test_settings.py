"""`unsupseg.toml`: options of methods, what they win over and lose to, and mistakes in the file."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def features(call):
    call("extract", "--dataset", "scenes", "--size", 32, "--backbone", "untrained", "--workers", 0)
    return call


def write(text):
    Path("unsupseg.toml").write_text(text)


def options(path):
    return json.loads((Path(path) / "manifest.json").read_text())["config"]["options"]


def test_options_of_a_method_come_from_its_table_then_from_set_and_lose_to_the_command_line(features):
    write("[pseudolabel]\nset = { iterations = 4, restarts = 3 }\n[pseudolabel.kmeans]\nrestarts = 2\n")
    label = ("pseudolabel", "--classes", 3, "--explain")
    path, said = features(*label)
    assert options(path) == {"iterations": 4, "restarts": 2, "sample": 200_000}
    assert "set.restarts = 2 (" in said
    assert "unsupseg.toml)" in said
    assert "set.sample = 200000 (default)" in said
    path, said = features(*label, "--set", "restarts=1")
    assert options(path)["restarts"] == 1
    assert "set.restarts = 1 (--set)" in said


def test_a_table_of_another_method_is_not_read(features):
    write("[pseudolabel.primaps]\nthreshold = 0.5\n")
    path, _ = features("pseudolabel", "--classes", 3, "--set", "restarts=1")
    assert "threshold" not in options(path)


def test_what_has_no_effect_in_a_call_is_left_out_of_the_file_and_refused_on_the_command_line(features):
    write("[pseudolabel]\nset = { crf = false }\n[train.primaps]\nmirror = 0.1\nepochs = 1\n")
    features("pseudolabel", "--method", "primaps", "--classes", 3)
    path, said = features("train", "--explain")
    assert options(path)["mirror"] == 0.5
    assert options(path)["epochs"] == 1
    assert "set.mirror = 0.5 (default; " in said
    assert "has no effect: images are changed with --tokens live only" in said
    assert "--set mirror (--set) has no effect" in features("train", "--set", "mirror=0.1", code=2)[1]
    write("[extract]\nratios = [0.8]\n")
    extract = ("extract", "--dataset", "scenes", "--size", 32, "--backbone", "untrained", "--workers", 0)
    assert "reused" in features(*extract)[1]
    assert "--ratios (command line) has no effect" in features(*extract, "--ratios", "0.8", code=2)[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train.stgo]\nsteps = 3\n", "Unknown table [train.stgo]"),
        ("[train.stgo]\nsteps = 3\n", "did you mean 'stego'"),
        ("[trian]\nseed = 3\n", "Unknown table [trian]"),
        ("[trian]\nseed = 3\n", "did you mean 'train'"),
        ('datset = "x"\n', "Unknown option 'datset'"),
        ("[graph.kmeans]\nsteps = 3\n", "this command has no method"),
        ("[pseudolabel.kmeans]\nrestart = 3\n", "did you mean 'restarts'"),
        ("[pseudolabel]\nset = { restart = 3 }\n", "did you mean 'restarts'"),
        ("[pseudolabel.kmeans]\nrestarts = 0\n", "greater than or equal to 1"),
        ("pseudolabel = 3\n", "must be a table"),
    ],
)
def test_a_mistake_in_the_file_is_named(features, text, said):
    write(text)
    _, shown = features("pseudolabel", "--classes", 3, code=2)
    assert said in shown
    assert "unsupseg.toml" in shown


def test_a_recipe_wins_over_the_file_which_wins_over_the_default(call):
    write("[train.kmeans]\nsteps = 7\nlr = 0.01\n[pseudolabel.kmeans]\niterations = 9\n")
    _, said = call("run", "scenes-kmeans", "--dry-run", "--explain")
    assert "train.set.steps = 100 (" in said
    assert "train.set.lr = 0.01 (unsupseg.toml)" in said
    assert "pseudolabel.set.iterations = 9 (unsupseg.toml)" in said
