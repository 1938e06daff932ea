"""What an extraction costs is said before it begins."""

import numpy as np
import pytest
from PIL import Image


def strip(folder, width, height, name="strip.png"):
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / name)


def test_the_tokens_of_views_are_told_and_a_strip_that_grows_is_refused(call, tmp_path):
    photos = tmp_path / "photos"
    strip(photos, 64, 32)
    _, said = call("extract", "--dataset", photos, "--size", 32, "--workers", 0)
    assert "1 view of 32 tokens each, 32 in all; the largest is 64x32 pixels" in said
    strip(photos, 4000, 40, "long.png")
    _, said = call("extract", "--dataset", photos, "--size", 320, "--workers", 0, code=2)
    assert "long.png' of 4000x40 pixels becomes a view of 32000x320, which is 160,000 tokens" in said
    assert "--geometry squash" in said
    _, said = call("extract", "--dataset", photos, "--size", 0, "--workers", 0)
    assert "2 views of 32 to 2,500 tokens each" in said
    call("extract", "--dataset", photos, "--size", 32, "--geometry", "squash", "--workers", 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [("version https://git-lfs.github.com/spec/v1\n", "Git LFS"), ("<!DOCTYPE html>", "web page")],
)
def test_an_image_or_model_that_is_a_pointer_or_a_page_is_named(call, tmp_path, content, said):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_text(content)
    assert said in call("extract", "--dataset", folder, "--workers", 0, code=1)[1]
    (tmp_path / "model.safetensors").write_text(content)
    assert said in call("predict", folder, "--model", tmp_path / "model.safetensors", code=1)[1]
