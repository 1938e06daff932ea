"""The Dockerfile names what is there: files, extras, the program, a Python that the package takes."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fixtures.pictures import noise
from fixtures.short import SHORT

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).with_name("docker.py")
INSTRUCTIONS = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT", "CMD"}


@pytest.fixture(scope="module")
def steps():
    """The instructions of the Dockerfile, in order: name and rest."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def copied(steps):
    """Return what is copied from here, without the targets."""
    return [source for name, rest in steps if name == "COPY" for source in shlex.split(rest)[:-1]]


def test_every_instruction_is_known_and_the_image_comes_first(steps):
    names = [name for name, _ in steps]
    assert set(names) <= INSTRUCTIONS
    assert names[0] == "FROM"
    assert names.count("ENTRYPOINT") == names.count("CMD") == 1


def test_the_python_is_one_that_the_package_takes(steps, project):
    major, minor = re.fullmatch(r"python:(\d+)\.(\d+)-slim", steps[0][1]).groups()
    least = re.fullmatch(r">=(\d+)\.(\d+)", project["project"]["requires-python"]).groups()
    assert (int(major), int(minor)) >= tuple(map(int, least))


def test_what_is_copied_is_there_and_gets_past_the_ignore_file(steps):
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in copied(steps):
        assert (ROOT / source).exists(), source
        assert source in kept


def test_the_build_finds_all_that_pyproject_names(steps, project):
    build = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [
        project["project"]["readme"],
        *project["project"]["license-files"],
        *build["packages"],
        *build["force-include"],
        "pyproject.toml",
    ]
    assert set(needed) <= set(copied(steps))


def test_extras_and_program_exist_and_torch_is_pinned(steps, project):
    runs = [rest for name, rest in steps if name == "RUN"]
    extras = re.findall(r"\.\[([\w,]+)\]", " ".join(runs))[0].split(",")
    assert set(extras) <= project["project"]["optional-dependencies"].keys()
    assert all("-c constraints.txt" in run for run in runs)
    assert dict(steps)["ENTRYPOINT"] == '["unsupseg"]'
    assert "unsupseg" in project["project"]["scripts"]


def test_arguments_are_declared_before_they_are_used(steps):
    declared = set()
    for name, rest in steps:
        if name == "ARG":
            declared.add(rest.split("=")[0])
        assert set(re.findall(r"\$\{(\w+)\}", rest)) <= declared


@pytest.mark.documents
def test_the_block_of_the_page_runs_on_a_stand_in(tmp_path):
    """`build` in the checkout, `run` in the folder of the photos."""
    noise(tmp_path / "photos", {f"{number}.png": (48, 64) for number in range(3)})
    (tmp_path / "unsupseg.toml").write_text(SHORT)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    (programs / "docker").chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {name: value for name, value in os.environ.items() if name != "UNSUPSEG_WORKSPACE"}
    environment |= {"PATH": path, "STAND_IN_DOCKER": str(tmp_path)}
    page = (ROOT / "docs/getting-started.md").read_text()
    lines = re.findall(r"^docker (?:build|run) .*$", page, re.MULTILINE)
    assert {line.split()[1] for line in lines} == {"build", "run"}
    for line in lines:
        place = ROOT if line.startswith("docker build") else tmp_path
        done = subprocess.run(
            ["bash", "-c", line], cwd=place, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "photos-segmented/classes.png").exists()
