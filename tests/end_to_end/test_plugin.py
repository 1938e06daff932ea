"""Methods of installed packages: the sample plug-in from its installation to the time after it, and broken ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "samples" / "plugin"
UNSUPSEG = str(Path(sys.executable).with_name("unsupseg"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the sample installed, which counts as installed when it is on the path."""
    place = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", place, SAMPLE], check=True)
    return place


@pytest.fixture
def run(tmp_path):
    """Call the command in an empty folder, with some folders on the path."""

    def call(*arguments, path=(), code=0):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
        environment["COLUMNS"] = "200"
        done = subprocess.run(
            [UNSUPSEG, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        return done.stdout.strip(), " ".join(done.stderr.split())

    return call


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


def test_the_sample_is_shown_runs_and_is_missed_when_it_is_gone(run, site, tmp_path):
    (tmp_path / "sample.toml").write_text(RECIPE)
    here = {"path": [site]}
    listed, _ = run("methods", "list", **here)
    assert "minibatch" in listed
    assert "unsupseg-minibatch" in listed
    assert (
        "Tokens that the clusters are fitted on"
        in run("pseudolabel", "--method", "minibatch", "--help", **here)[0]
    )
    assert "--set" in run("methods", "show", "minibatch", **here)[0]
    model, _ = run("run", "sample.toml", **here)
    assert run("train", "--set", "steps=5", **here)[0].endswith(Path(model).name)
    shown, _ = run("show", Path(model).name, **here)
    assert "unsupseg-minibatch 0.1.0" in shown
    picture = SAMPLE.parent / "scenes" / "images" / "val"
    run("predict", picture, "--workers", 0, **here)

    listed, _ = run("list")  # not installed any more
    assert "method 'minibatch' of unsupseg-minibatch 0.1.0, which is not installed" in listed
    _, said = run("verify")
    assert "artifacts are whole" in said
    _, said = run("train", code=2)
    assert "was made by the method 'minibatch' of unsupseg-minibatch 0.1.0, which is not installed" in said
    run("predict", picture, "--workers", 0, "--flip")  # its heads are those of this package
    assert "Unknown method 'minibatch'" in run("pseudolabel", "--method", "minibatch", code=2)[1]


def test_the_contract_of_parts_holds_for_the_sample(site):
    contract = Path(__file__).parents[1] / "contract" / "test_parts.py"
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "minibatch", str(contract)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_another_version_of_a_plug_in_gives_another_key(run, site, tmp_path):
    newer = tmp_path / "newer"
    newer.mkdir()
    for path in site.iterdir():
        (newer / path.name.replace("0.1.0", "0.2.0")).symlink_to(path)
    info = newer / "unsupseg_minibatch-0.2.0.dist-info"
    old = info.resolve()
    info.unlink()
    info.mkdir()
    (info / "METADATA").write_text((old / "METADATA").read_text().replace("0.1.0", "0.2.0"))
    (info / "entry_points.txt").write_text((old / "entry_points.txt").read_text())
    run("extract", "--dataset", "scenes", "--backbone", "untrained", "--size", 48, "--workers", 0)
    label = ("pseudolabel", "--method", "minibatch", "--classes", 4)
    assert run(*label, path=[site])[0] != run(*label, path=[newer])[0]


def test_a_broken_plug_in_is_named_and_the_rest_works(run, tmp_path):
    broken = package(tmp_path / "broken", "unsupseg_broken", "broken", "import a_module_that_is_not_there\n")
    package(broken, "unsupseg_wrong", "wrong", "METHOD = 7\n")
    package(broken, "unsupseg_hidden", "kmeans", "METHOD = 7\n")
    here = {"path": [broken]}
    listed, said = run("methods", "list", **here)
    assert "primaps" in listed
    assert "'broken' of the package unsupseg_broken 1.0 cannot be used" in said
    assert "a_module_that_is_not_there" in said
    assert "expected a Method, found int" in said
    assert "'kmeans' of unsupseg_hidden 1.0 is hidden" in said
    run("extract", "--dataset", "scenes", "--backbone", "untrained", "--size", 48, "--workers", 0, **here)
    run("pseudolabel", "--classes", 4, **here)
    _, said = run("pseudolabel", "--method", "broken", code=1, **here)
    assert "unsupseg_broken 1.0 cannot be used" in said
    assert "not foreseen" not in said
    run("run", "scenes-kmeans", "--dry-run", **here)


def test_two_packages_with_one_method_are_both_named(run, tmp_path):
    twice = package(tmp_path / "twice", "unsupseg_first", "same", "METHOD = 7\n")
    package(twice, "unsupseg_second", "same", "METHOD = 7\n")
    _, said = run("pseudolabel", "--method", "same", code=1, path=[twice])
    assert "unsupseg_first 1.0 and unsupseg_second 1.0" in said


PARTS = """
from unsupseg_cli.methods.declaration import Method, MethodOptions, Part
class Options(MethodOptions):
    pass
METHOD = Method("parted", "two parts", labellers=tuple(
    Part(Options, "unsupseg_minibatch.parts:MiniBatchLabeller", name, f"the {name}") for name in ("masks", "clusters")
))
"""


def test_a_part_that_does_not_exist_is_said_with_a_suggestion(run, site, tmp_path):
    here = {"path": [package(tmp_path / "parts", "unsupseg_parted", "parted", PARTS), site]}
    label = ("pseudolabel", "--method", "parted")
    assert "pseudolabel --part masks, pseudolabel --part clusters" in run("methods", "list", **here)[0]
    run("extract", "--dataset", "scenes", "--backbone", "untrained", "--size", 48, "--workers", 0, **here)
    assert "has the parts masks, clusters: name one with --part" in run(*label, code=2, **here)[1]
    assert "did you mean 'masks'" in run(*label, "--part", "mask", code=2, **here)[1]
    assert "leave --part mask out" in run("pseudolabel", "--part", "mask", code=2, **here)[1]
