"""The file of --log: plain lines of what stderr shows, on a terminal too."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from unsupseg_cli.cli.console import LOG, TerminalReporter
from unsupseg_cli.cli.main import app


@pytest.fixture
def lines(tmp_path):
    """Return what the log holds, without the times."""
    path = tmp_path / "logs" / "run.txt"
    LOG.open(path)
    yield lambda: [line.split(" ", 2)[2] for line in path.read_text().splitlines()]
    LOG.close()


def test_bars_of_a_terminal_are_no_lines(lines, monkeypatch):
    reporter = TerminalReporter()
    monkeypatch.setattr(reporter.console, "_force_terminal", True)
    assert list(reporter.track(range(3), "extract", total=3)) == [0, 1, 2]
    reporter.info("written [to] 'a\x1b[31m'")
    reporter.warn("few")
    assert lines() == ["written [to] 'a\\x1b[31m'", "warning: few"]


def test_long_work_is_told_in_the_log_of_a_terminal_too(lines, monkeypatch):
    monkeypatch.setattr("unsupseg_cli.cli.console._PLAIN_INTERVAL", -1.0)
    reporter = TerminalReporter()
    monkeypatch.setattr(reporter.console, "_force_terminal", True)
    list(reporter.track(range(2), "extract", total=2))
    assert [line.split(" (")[0] for line in lines()] == ["extract: 1/2", "extract: 2/2"]


def test_quiet_leaves_the_log_whole(lines, capsys):
    TerminalReporter(quiet=True).info("features 'x' written")
    assert lines() == ["features 'x' written"]
    assert capsys.readouterr().err == ""


def test_a_process_beside_writes_into_the_same_log(lines):
    pickle.loads(pickle.dumps(TerminalReporter(quiet=True))).info("from beside")
    assert lines() == ["from beside"]


def test_errors_are_in_the_log_and_a_log_that_cannot_be_written_is_an_error(tmp_path):
    path = tmp_path / "log.txt"
    call = ("train", "-w", str(tmp_path / "w"))
    result = CliRunner().invoke(app, [*call, "--log", str(path)])
    assert result.exit_code == 2
    assert result.stderr.strip() in path.read_text()
    result = CliRunner().invoke(app, [*call, "--log", str(tmp_path)])
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize("name", ["photo.png", "classes.json"])
def test_what_is_no_log_stays_as_it_is(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b'{"classes": ["a"]}')
    if name.endswith(".png"):
        Image.new("RGB", (8, 8)).save(path)
    before = path.read_bytes()
    result = CliRunner().invoke(app, ["train", "-w", str(tmp_path / "w"), "--log", str(path)])
    assert (result.exit_code, path.read_bytes()) == (2, before)
    assert "is there and is no log" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_takes_the_log_but_not_the_work(tmp_path):
    result = CliRunner().invoke(app, ["train", "-w", str(tmp_path / "w"), "--log", "/dev/full"])
    assert result.exit_code == 2
    assert "--log '/dev/full' cannot be written (No space left on device): the work goes on" in result.stderr
    assert "error: No pseudolabels in the workspace" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_behind_stdout_is_foreseen():
    with Path("/dev/full").open("w") as full:
        call = [sys.executable, "-m", "unsupseg_cli", "recipes", "list"]
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "cannot be written (No space left on device): free some space, or write elsewhere" in done.stderr
