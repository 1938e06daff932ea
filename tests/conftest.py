"""What every test shares."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner


@pytest.fixture(scope="session")
def blocks(tmp_path_factory):
    """A folder of four pictures of coloured blocks, to be read only."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        rng = np.random.default_rng(number)
        colors = rng.integers(0, 256, (3, 4, 3)).repeat(24, 0).repeat(24, 1)
        Image.fromarray(colors.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call the command line in an empty folder, ``here``; returns (stdout, stderr in one line)."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("UNSUPSEG_WORKSPACE", raising=False)

    def invoke(*arguments, code=0):
        from unsupseg_cli.cli.main import app

        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result.stdout.strip(), " ".join(result.stderr.split())

    return invoke


@pytest.fixture
def context(tmp_path):
    """A workspace of the test's own."""
    from unsupseg_cli import Context, Workspace

    return Context(Workspace(tmp_path / "work"))


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A bucket of the test's own, and the environment that leads to it."""
    pytest.importorskip("obstore", reason="the extra `cloud` is missing: pip install 'unsupseg[cloud]'")
    pytest.importorskip("moto", reason="moto is missing: pip install 'unsupseg[dev]'")
    from fixtures.bucket import open_bucket

    bucket = open_bucket()
    environment = {
        "AWS_ENDPOINT_URL": bucket.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "UNSUPSEG_CACHE": str(tmp_path / "cache"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    yield bucket
    bucket.stop()
