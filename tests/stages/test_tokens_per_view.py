"""What an extraction costs is said before it begins."""

import numpy as np
import pytest
from PIL import Image


def strip(folder, width, height, name="strip.png"):
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / name)


def test_the_tokens_of_views_are_told_and_too_many_are_refused(call, tmp_path):
    photos = tmp_path / "photos"
    strip(photos, 64, 32)
    _, said = call("extract", "--dataset", photos, "--size", 32, "--workers", 0)
    assert "to embed: 1 view of 32 tokens each, 32 in all; the largest is 64x32 pixels" in said
    strip(photos, 20_000, 400, "long.png")
    _, said = call("extract", "--dataset", photos, "--size", 320, "--workers", 0, code=2)
    assert "long.png' of 20000x400 pixels becomes a view of 16000x320, which is 80,000 tokens" in said
    assert "--geometry squash" in said
    call("extract", "--dataset", photos, "--size", 32, "--geometry", "squash", "--workers", 0)


@pytest.mark.parametrize(("width", "height"), [(4000, 40), (4000, 1), (1, 4000)])
def test_a_strip_does_not_grow_without_bound(call, tmp_path, width, height):
    """At size 320 the 4000x1 would have 6,400,000 tokens."""
    photos = tmp_path / "photos"
    strip(photos, width, height)
    _, said = call("extract", "--dataset", photos, "--size", 320, "--workers", 0)
    assert "1 long and narrow image is not enlarged to --size, to bound the tokens: 'strip.png'" in said
    tokens = 3840 if height == 40 else 640
    assert f"1 view of {tokens:,} tokens each" in said
    call("pseudolabel", "--classes", 2)
    call("train", "--set", "steps=1")
    path, said = call("predict", photos, "--workers", 0)
    assert "not enlarged to --size" in said
    with Image.open(tmp_path / "here" / path / "ids" / "strip.png.png") as ids:
        assert ids.size == (width, height)


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
