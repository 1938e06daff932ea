"""Images in a bucket: fetched once into the cache, of the same keys as those of a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = ("--size", 48, "--backbone", "untrained", "--workers", 0)


@pytest.fixture
def photos(bucket, call):
    """Four pictures with labels: in the folder ``photos``, and in the bucket."""
    classes = {"classes": [{"name": "near", "id": 0}, {"name": "far", "id": 1}]}
    for folder in ("images", "labels"):
        Path("photos", folder, "deep").mkdir(parents=True)
    Path("photos/classes.json").write_text(json.dumps(classes))
    for number in range(4):
        name = f"{'deep/' if number % 2 else ''}{number}.png"
        noise = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(noise).save(f"photos/images/{name}")
        Image.fromarray(noise[..., 0] // 128).save(f"photos/labels/{name}")
    for path in Path("photos").rglob("*.*"):
        bucket.change(path.as_posix(), path.read_bytes())
    bucket.change("photos/images/readme.pdf", b"no image")
    return bucket.address("photos")


def test_images_in_a_bucket_have_the_keys_of_a_folder_and_are_fetched_once(bucket, call, photos):
    local, _ = call("extract", "photos/images", *SMALL, "--json", "-w", "local")
    for arguments in ((f"{photos}/images",), ("--dataset", f"{photos}/images")):
        made, said = call("extract", *arguments, *SMALL, "--json", "-w", "other")
        assert [json.loads(made)[name] for name in ("key", "digest")] == [
            json.loads(local)[name] for name in ("key", "digest")
        ]
        assert "1 objects below" in said
        assert bucket.count("GET", r"images/.*\.png") == 4
    assert bucket.count("GET", "readme") == 0
    data = json.loads(made)["data"]
    assert f"{photos}/images" in (data["root"], *data["named"])


def test_the_commands_of_the_page_on_object_storage_run(bucket, call, photos):
    page = (Path(__file__).parents[2] / "docs" / "cloud.md").read_text().split("```sh")[1].split("```")[0]
    Path("unsupseg.toml").write_text('workers = 0\n[extract]\nbackbone = "untrained"\nsize = 48\n')
    lines = [line.split() for line in page.replace("s3://my-bucket", f"s3://{bucket.name}").splitlines()]
    ours = [words[1:] for words in lines if words[:1] == ["unsupseg"]]
    assert [words[0] for words in ours] == ["extract", "list"]
    *_, listed = [call(*words)[0] for words in ours]
    assert "features" in listed


def test_the_chain_finds_its_images_again_from_another_cache(bucket, call, photos, monkeypatch, tmp_path):
    call("extract", f"{photos}/", *SMALL)
    call("pseudolabel", "--classes", 2, "--sheet", 0)
    call("train", "--set", "steps=20")
    remote, _ = call("predict", "--workers", 0)
    assert len(list(Path(remote).glob("ids/**/*.png"))) == 4
    scores = json.loads(call("eval", "--dataset", f"{photos}/", "--workers", 0, "--json")[0])["summary"]
    there = json.loads(call("eval", "--dataset", "photos/", "--workers", 0, "--json")[0])["summary"]
    assert scores["miou"] == there["miou"]
    monkeypatch.setenv("UNSUPSEG_CACHE", str(tmp_path / "other"))
    again, said = call("predict", "--workers", 0)
    assert (again, "reused" in said) == (remote, True)
    call("report")
    assert call("predict", f"{photos}/images/0.png", "--workers", 0)[0] != remote


def test_a_changed_image_has_another_key_and_a_removed_one_is_gone(bucket, call, photos):
    first, _ = call("extract", f"{photos}/images", *SMALL)
    bucket.change("photos/images/0.png", bucket.content("photos/images/2.png"))
    second, _ = call("extract", f"{photos}/images", *SMALL)
    assert second != first
    assert bucket.count("GET", r"images/.*\.png") == 5
    bucket.remove("photos/images/2.png")
    assert json.loads(call("extract", f"{photos}/images", *SMALL, "--json")[0])["data"]["count"] == 3


def test_segment_takes_an_address(call, photos):
    call("segment", f"{photos}/images", "--backbone", "tiny", "--classes", 2, "--workers", 0)
    assert len(list(Path("images-segmented/ids").rglob("*.png"))) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("{}/nothing",), 2, "No image lies at '{}/nothing': nothing lies there"),
        (("{}/classes",), 2, "nothing lies there"),
        (("s3://b",), 2, "names no bucket"),
        (("{}/images", "--cache-size", "100"), 1, "holds 0.0 MB at most: give more with --cache-size"),
        (("{}/images", "--cache-size", "much"), 2, "expected a size such as 50GB, found 'much'"),
    ],
)
def test_images_that_cannot_be_taken_are_named(bucket, call, photos, arguments, code, said):
    words = [word.format(photos) for word in arguments]
    assert said.format(photos) in call("extract", *words, *SMALL, code=code)[1]
    assert bucket.count("GET", r"images/.*\.png") == 0
