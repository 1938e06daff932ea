"""A scan takes what was meant, and says what it leaves out."""

import os

import pytest
from PIL import Image

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.contents.images import open_data, open_paths, reopen
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.options import DataConfig
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.images import IMAGE_SUFFIXES, read_image


class Listener(Silent):
    def __init__(self):
        self.said = []

    def info(self, message):
        self.said.append(message)

    warn = info


def pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


def keys(dataset):
    return [item.key for item in dataset.items]


@pytest.fixture
def photos(tmp_path):
    pictures(tmp_path / "photos", "a.jpg", "b.jpg")
    (tmp_path / "c.txt").write_text("sky\nroad\n")
    return tmp_path / "photos"


@pytest.mark.parametrize("folder", ["labels", "masks", "SegmentationClass", "zzz"])
def test_labels_below_the_images_are_no_images_now_and_when_opened_again(photos, folder):
    pictures(photos, f"{folder}/a.png", f"{folder}/b.png")
    dataset = open_dataset(f"{photos}/", labels=photos / folder, class_file=photos.parent / "c.txt")
    assert keys(dataset) == ["a.jpg", "b.jpg"]
    assert [item.label.name for item in dataset.items] == ["a.png", "b.png"]
    context = Context()
    listener = context.reporter = Listener()
    config = DataConfig(dataset=f"{photos}/", labels=photos / folder, class_file=photos.parent / "c.txt")
    from unsupseg_cli.contents.images import describe_images

    source = describe_images(open_data(config, context), context)
    assert keys(reopen(source)) == ["a.jpg", "b.jpg"]
    assert f"left out: '{folder}'" in " ".join(listener.said)
    if folder != "zzz":  # known by its name and its files' names
        assert keys(open_dataset(f"{photos}/")) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("names", [("x_mask.png", "y_mask.png"), ("1.png", "2.png")])
def test_a_folder_called_masks_counts_as_labels_only_where_its_names_are_those_of_images(photos, names):
    pictures(photos, *(f"masks/{name}" for name in names))
    assert len(open_dataset(f"{photos}/").items) == 4


def test_artifacts_and_what_predict_wrote_are_no_images(call, tmp_path):
    here = tmp_path / "here"
    pictures(here, "p/a.png", "p/b.png", "p/sub/c.png")
    call("extract", "--dataset", ".", "--size", 32, "--workers", 0)
    call("pseudolabel", "--method", "kmeans", "--classes", 2)
    call("train", "--method", "kmeans", "--classes", 2)
    _, said = call("predict", "p", "--out", "p/out", "--workers", 0)
    assert "3 images" in said
    for dataset in (".", "p"):
        _, said = call("extract", "--dataset", dataset, "--size", 32, "--workers", 0)
        assert "3 images" in said
        assert "(written by `predict --out`)" in said
        assert ("(an artifact of this tool)" in said) == (dataset == ".")
    assert (here / "p/out/ids/a.png.png").is_file()
    _, said = call("predict", "p", "--out", "p", code=2)
    assert "name another folder with --out" in said
    assert not (here / "p/ids").exists()
    _, said = call("predict", "--dataset", "p", "--out", "p/new", "--workers", 0)
    assert "3 images" in said


def test_a_link_that_leads_nowhere_a_loop_and_a_pipe_are_left_out_and_named(photos):
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "loop.png").symlink_to("loop.png")
    os.mkfifo(photos / "pipe.png")
    context = Context()
    listener = context.reporter = Listener()
    config = DataConfig(dataset=f"{photos}/")
    assert keys(open_data(config, context)) == ["a.jpg", "b.jpg"]
    said = " ".join(listener.said)
    assert "3 names are no readable file" in said
    assert "gone.jpg, loop.png, pipe.png" in said
    assert keys(open_paths([photos], context)) == ["a.jpg", "b.jpg"]
    with pytest.raises(UnsupsegError, match=r"gone\.jpg.*--strict"):
        open_data(config.model_copy(update={"strict": True}), context)


def test_other_files_are_counted_by_suffix(photos):
    for name in ("a.gif", "b.gif", "c.txt", "README"):
        (photos / name).write_text("x")
    assert open_dataset(f"{photos}/").remarks[0] == "2 images, 4 other files (.gif 2, no suffix 1, .txt 1)"


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "a.gif").write_text("x")
    with pytest.raises(UsageError, match=r"0 images, 1 other file \(\.gif 1\)"):
        open_dataset(f"{tmp_path}/")


@pytest.mark.parametrize("suffix", [".jp2", ".avif"])
def test_more_formats_are_read_where_pillow_has_them(tmp_path, suffix):
    if suffix not in IMAGE_SUFFIXES:
        pytest.skip(f"Pillow reads no {suffix} here")
    Image.new("RGB", (16, 8), (200, 30, 40)).save(tmp_path / f"a{suffix}")
    (item,) = open_dataset(f"{tmp_path}/").items
    assert abs(read_image(item.image).astype(int) - [200, 30, 40]).max() < 12


# Endings of names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{}_image.jpg", "{}_label.png"),
        ("{}_img.png", "{}_mask.png"),
        ("{}_leftImg8bit.png", "{}_gtFine_labelIds.png"),
        ("{}.jpg", "{}_L.png"),
        ("{}.jpg", "{}.jpg.png"),
        ("img-{}-rgb.png", "img-{}-seg.png"),
    ],
)
def test_endings_are_proposed_where_no_name_agrees_and_taken_where_given(tmp_path, image, label):
    numbers = ("903127", "903130", "77")
    pictures(tmp_path / "i", *(image.format(n) for n in numbers))
    pictures(tmp_path / "l", *(label.format(n) for n in numbers))
    (tmp_path / "c.txt").write_text("sky\nroad\n")
    options = {"labels": tmp_path / "l", "class_file": tmp_path / "c.txt"}
    with pytest.raises(UsageError, match="They agree with") as error:
        open_dataset(f"{tmp_path}/i/", **options)
    words = str(error.value).split("They agree with ")[1].removesuffix(".").split()
    given = {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    dataset = open_dataset(f"{tmp_path}/i/", **options, **given)
    assert {item.image.name: item.label.name for item in dataset.items} == {
        image.format(n): label.format(n) for n in numbers
    }


def test_images_and_labels_in_one_folder_are_told_apart_by_their_endings(tmp_path):
    pictures(tmp_path / "d", *(f"{n}_{kind}.png" for n in (1, 2) for kind in ("image", "label")))
    (tmp_path / "c.txt").write_text("sky\nroad\n")
    options = {"labels": tmp_path / "d", "class_file": tmp_path / "c.txt"}
    with pytest.raises(UsageError, match="tell them apart by the endings"):
        open_dataset(f"{tmp_path}/d/", **options)
    dataset = open_dataset(f"{tmp_path}/d/", image_suffix="_image", label_suffix="_label", **options)
    assert [(item.key, item.label.name) for item in dataset.items] == [
        ("1_image.png", "1_label.png"),
        ("2_image.png", "2_label.png"),
    ]
    assert "'1_label.png' looks like a label of '1_image.png'" in " ".join(
        open_dataset(f"{tmp_path}/d/").remarks
    )
