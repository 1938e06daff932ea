"""What the commands print, and what they leave alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def photos(call):
    """Four pictures of noise in the folder of the calls."""
    folder = Path("photos")
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


EXTRACT = ["extract", "--dataset", "photos", "--size", 32, "--workers", 0, "--backbone", "untrained"]


@pytest.mark.parametrize("arguments", [["--help"], ["extract", "--help"]])
def test_help_imports_no_torch(arguments):
    code = (
        "import sys; from typer.testing import CliRunner; from unsupseg_cli.cli.main import app; "
        f"result = CliRunner().invoke(app, {arguments!r}); "
        "assert result.exit_code == 0 and 'Usage' in result.output, result.output; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_json_is_the_manifest_and_a_second_run_writes_nothing(call):
    path, said = call(*EXTRACT)
    assert "random weights" in said
    before = {file: file.stat().st_mtime_ns for file in Path(path).rglob("*")}
    manifest = json.loads(call(*EXTRACT, "--json")[0])
    assert manifest.pop("path") == path
    assert manifest == json.loads((Path(path) / "manifest.json").read_text())
    assert {file: file.stat().st_mtime_ns for file in Path(path).rglob("*")} == before


def test_batch_size_does_not_enter_the_key_and_force_writes_the_same_bytes(call):
    first = json.loads(call(*EXTRACT, "--json")[0])
    assert "reused" in call(*EXTRACT, "--batch-size", 1)[1]
    again = json.loads(call(*EXTRACT, "--force", "--json")[0])
    assert again["key"] == first["key"]
    assert again["outputs"] == first["outputs"]


def test_another_seed_gives_other_pseudolabels(call):
    call(*EXTRACT)
    one, two = (call("pseudolabel", "--classes", 3, "--seed", seed)[0] for seed in (0, 1))
    assert one != two


def test_gc_removes_drafts_and_verify_refuses_a_broken_manifest(call):
    path, _ = call(*EXTRACT)
    draft = Path(path).parent / ".partial-0123456789abcdef"
    draft.mkdir()
    (draft / "part").write_text("left by a kill")
    call("gc")
    assert draft.exists()  # only listed without --yes
    call("gc", "--yes")
    assert not draft.exists()
    assert Path(path).is_dir()
    call("pseudolabel", "--classes", 2)  # which was made of it
    (Path(path) / "manifest.json").write_text("{}")
    _, said = call("verify", code=1)
    assert said.count("manifest.json' is damaged") == 1
    assert "error: 1 problem: run what made the artifacts named above again with --force" in said
    assert "Traceback" not in said
