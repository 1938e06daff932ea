"""Fonts: names of classes and images show in the scripts that people write."""

import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from unsupseg_cli.report.letters import _file_with, _letters_of, font_for
from unsupseg_cli.report.overlay import legend


@pytest.fixture(autouse=True)
def of_this_test():
    yield
    _file_with.cache_clear()


def drawn(text):
    picture = Image.new("L", (60, 40), 255)
    ImageDraw.Draw(picture).text((5, 5), text, 0, font_for(text, 24))
    return np.asarray(picture)


@pytest.mark.parametrize("letters", ["ßé", "Жλ", "שב", "عس"])
def test_letters_beyond_ascii_are_told_apart(letters):
    first, second = map(drawn, letters)
    assert not np.array_equal(first, second)  # boxes for missing letters are all the same
    assert not np.array_equal(first, drawn("\U0010fffd"))


def test_letters_of_other_scripts_are_looked_for_among_the_fonts_of_the_machine(monkeypatch, tmp_path):
    own = font_for("é", 16).path
    here, broken = tmp_path / "here.ttf", tmp_path / "broken.ttf"
    shutil.copy(own, here)
    broken.write_bytes(b"no font")
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [str(here), str(broken)])
    monkeypatch.setattr(
        "unsupseg_cli.report.letters._letters_of",
        lambda file: frozenset([ord("日")]) if file == str(here) else _letters_of(file),
    )
    assert font_for("日", 16).path == str(here)
    assert font_for("본", 16).path == own  # nowhere: boxes, and no error
    assert legend(["日", "본"], np.zeros((2, 3), np.uint8)).size[0] == 1000
