"""The wheel, installed into an environment of its own outside the checkout, has all that a run needs."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_wheel_brings_scenes_weights_and_recipes(tmp_path):
    wheels, place, home = tmp_path / "wheels", tmp_path / "venv", tmp_path / "home"
    home.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(CHECKOUT)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = wheels.glob("unsupseg*.whl")
    venv.create(place, with_pip=False)
    (site,) = place.glob("lib/python*/site-packages")
    # A path line brings the dependencies; .pth files of that folder (the editable install) are not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(place / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    hidden = ("PYTHONPATH", "UNSUPSEG_WORKSPACE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(home), "HF_HUB_OFFLINE": "1"}

    def run(*command):
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    code = "import unsupseg_cli; print(unsupseg_cli.__file__)"
    assert Path(run(python, "-c", code)).is_relative_to(place)
    assert "scenes-kmeans" in run(str(place / "bin" / "unsupseg"), "recipes", "list")
    short = ("--set", "extract.size=64", "--set", "train.steps=3", "--set", "train.restarts=1")
    path = run(str(place / "bin" / "unsupseg"), "run", "scenes-kmeans", *short)
    assert "\n" not in path
    assert (home / path / "sheet.png").stat().st_size > 0
