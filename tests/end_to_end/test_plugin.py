"""Methods of installed packages: the sample plug-in from its installation to the time after it, and broken ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.calls import run_calls  # isort: skip

SAMPLE = Path(__file__).parents[2] / "samples" / "plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the sample installed, which counts as installed when it is on the path."""
    place = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", place, SAMPLE], check=True)
    return place


def package(folder, name, entry, source, version="1.0"):
    """Write a package as an installation would lie there: a module and its entry point."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[unsupseg.methods]\n{entry} = {name}:METHOD\n")
    return folder


RECIPE = """
name = "sample"
description = "the sample plug-in"

[data]
dataset = "scenes"

[[stage]]
command = "extract"
split = "train"
backbone = "untrained"
size = 48
workers = 0

[[stage]]
command = "pseudolabel"
method = "minibatch"
classes = 4
set = { sample = 2000 }

[[stage]]
command = "train"
set = { steps = 5 }
"""


EXTRACT = ("extract", "--dataset", "scenes", "--backbone", "untrained", "--size", 48, "--workers", 0)


def test_the_sample_is_shown_runs_and_is_missed_when_it_is_gone(site, tmp_path):
    (tmp_path / "sample.toml").write_text(RECIPE)
    picture = SAMPLE.parent / "scenes" / "images" / "val"
    results = run_calls(
        [
            ["methods", "list"],
            ["pseudolabel", "--method", "minibatch", "--help"],
            ["methods", "show", "minibatch"],
            ["run", "sample.toml"],
            ["train", "--set", "steps=5", "--json"],
            ["predict", picture, "--workers", 0],
        ],
        tmp_path,
        site,
    )
    assert [code for code, _, _ in results] == [0] * 6
    listed, helped, shown, made, again, _ = (printed for _, printed, _ in results)
    assert "minibatch" in listed
    assert "unsupseg-minibatch" in listed
    assert "Tokens that the clusters are fitted on" in helped
    assert "--set" in shown
    manifest = json.loads(again)
    assert Path(manifest["path"]).name == Path(made).name
    assert manifest["config"]["method"] == "minibatch"
    assert manifest["config"]["method_version"] == "unsupseg-minibatch 0.1.0"
    assert manifest["config"]["options"]["steps"] == 5

    listed, whole, train, predict, label = run_calls(  # not installed any more
        [
            ["list"],
            ["verify"],
            ["train"],
            ["predict", picture, "--workers", 0, "--flip"],
            ["pseudolabel", "--method", "minibatch", "--classes", 4],
        ],
        tmp_path,
    )
    gone = "method 'minibatch' of unsupseg-minibatch 0.1.0, which is not installed"
    assert gone in listed[1]
    assert whole[0] == 0
    assert "artifacts are whole" in whole[2]
    assert gone in whole[2]
    assert train[0] == 2
    assert f"was made by the {gone}" in train[2]
    assert predict[0] == 0  # its heads are those of this package
    assert label[0] == 2
    assert "Unknown method 'minibatch'" in label[2]


@pytest.mark.slow
def test_the_contract_of_parts_holds_for_the_sample(site):
    contract = Path(__file__).parents[1] / "contract" / "test_parts.py"
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "minibatch", str(contract)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_another_version_of_a_plug_in_gives_another_key(site, tmp_path):
    newer = tmp_path / "newer"
    newer.mkdir()
    info = newer / "unsupseg_minibatch-0.2.0.dist-info"
    info.mkdir()
    for path in site.iterdir():
        if path.suffix != ".dist-info":
            (newer / path.name).symlink_to(path)
            continue
        for name in ("METADATA", "entry_points.txt"):
            (info / name).write_text((path / name).read_text().replace("0.1.0", "0.2.0"))
    label = ["pseudolabel", "--method", "minibatch", "--classes", 4]
    _, first = run_calls([EXTRACT, label], tmp_path, site)
    (second,) = run_calls([label], tmp_path, newer)
    assert first[0] == second[0] == 0
    assert first[1] != second[1]


FAILS = """
from unsupseg_cli.methods.declaration import Method, MethodOptions, Part
class Options(MethodOptions):
    pass
METHOD = Method("fails", "divides by zero", labellers=(Part(Options, "unsupseg_fails:Labeller"),))
class Labeller:
    def __init__(self, options, inputs):
        1 / 0
"""


def test_a_broken_plug_in_is_named_and_the_rest_works(tmp_path):
    broken = package(tmp_path / "broken", "unsupseg_broken", "broken", "import a_module_that_is_not_there\n")
    package(broken, "unsupseg_wrong", "wrong", "METHOD = 7\n")
    package(broken, "unsupseg_hidden", "kmeans", "METHOD = 7\n")
    package(broken, "unsupseg_exits", "exits", "print('noise')\nraise SystemExit('gone')\n")
    package(broken, "unsupseg_typo", "typo", "METHOD = (\n")
    package(broken, "unsupseg_fails", "fails", FAILS)
    package(broken, "unsupseg_first", "same", "METHOD = 7\n")
    package(broken, "unsupseg_second", "same", "METHOD = 7\n")
    listed, _, label, plan, named, twice, fails = run_calls(
        [
            ["methods", "list"],
            EXTRACT,
            ["pseudolabel", "--classes", 4],
            ["run", "scenes-kmeans", "--dry-run"],
            ["pseudolabel", "--method", "broken"],
            ["pseudolabel", "--method", "same"],
            ["pseudolabel", "--method", "fails", "--classes", 4],
        ],
        tmp_path,
        broken,
    )
    assert "primaps" in listed[1]
    assert "'broken' of the package unsupseg_broken 1.0 cannot be used" in listed[2]
    assert "a_module_that_is_not_there" in listed[2]
    assert "expected a Method, found int" in listed[2]
    assert "unsupseg_exits:METHOD: gone" in listed[2]
    assert "noise" not in listed[1]  # stdout is for the result
    assert "unsupseg_typo:METHOD" in listed[2]
    assert "'kmeans' of unsupseg_hidden 1.0 is hidden" in listed[2]
    assert (label[0], plan[0], named[0], twice[0]) == (0, 0, 1, 1)
    assert "unsupseg_broken 1.0 cannot be used" in named[2]
    assert "not foreseen" not in named[2]
    assert "unsupseg_first 1.0 and unsupseg_second 1.0" in twice[2]
    assert fails[0] == 1
    assert "The method 'fails' of unsupseg_fails 1.0 failed (ZeroDivisionError: division by zero)" in fails[2]
    assert "not foreseen" not in fails[2]


PARTS = """
from unsupseg_cli.methods.declaration import Method, MethodOptions, Part
class Options(MethodOptions):
    pass
METHOD = Method("parted", "two parts", labellers=tuple(
    Part(Options, "unsupseg_minibatch.parts:MiniBatchLabeller", name, f"the {name}") for name in ("masks", "clusters")
))
"""


def test_a_part_that_does_not_exist_is_said_with_a_suggestion(site, tmp_path):
    parted = package(tmp_path / "parts", "unsupseg_parted", "parted", PARTS)
    label = ["pseudolabel", "--method", "parted"]
    listed, _, none, wrong, needless = run_calls(
        [
            ["methods", "list"],
            EXTRACT,
            label,
            [*label, "--part", "mask"],
            ["pseudolabel", "--part", "mask"],
        ],
        tmp_path,
        parted,
        site,
    )
    assert "pseudolabel --part masks, pseudolabel --part clusters" in listed[1]
    assert (none[0], wrong[0], needless[0]) == (2, 2, 2)
    assert "has the parts masks, clusters: name one with --part" in none[2]
    assert "did you mean 'masks'" in wrong[2]
    assert "leave --part mask out" in needless[2]
