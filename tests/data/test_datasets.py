import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from unsupseg_cli import Context, EvalConfig, Workspace
from unsupseg_cli.contents.images import open_data
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.datasets import open_dataset


def picture(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)


def keys(dataset) -> list[str]:
    return [item.key for item in dataset.items]


def pairs(dataset) -> dict[str, str | None]:
    return {item.key: item.label and item.label.name for item in dataset.items}


@pytest.fixture
def photos(tmp_path):
    """Images and labels in two splits, one label missing, and a class file, as CamVid and the scenes lie."""
    root = tmp_path / "photos"
    for split, names in {"train": ("a", "b"), "val": ("c",)}.items():
        picture(*(root / "images" / split / f"{name}.jpg" for name in names))
        picture(*(root / "labels" / split / f"{name}.png" for name in names if name != "b"))
    (root / "classes.json").write_text(json.dumps({"classes": ["sky", "road"], "void": 11}))
    return root


# A folder of images --------------------------------------------------------------------------------------


def test_folder_is_walked_without_hidden_files_and_link_loops(tmp_path):
    picture(*(tmp_path / name for name in ("b.png", "sub/ü.jpg", ".hidden/x.png", "sub/.y.png", "c.JPG")))
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    assert keys(open_dataset(f"{tmp_path}/")) == ["b.png", "c.JPG", "sub/ü.jpg"]


def test_a_decomposed_name_gives_the_composed_key(tmp_path):
    picture(tmp_path / "u\u0308.png")
    assert keys(open_dataset(f"{tmp_path}/")) == ["ü.png"]


def test_train_and_val_sub_folders_are_splits(tmp_path):
    picture(*(tmp_path / name for name in ("train/a.png", "val/b.png", "other/c.png")))
    assert keys(open_dataset(f"{tmp_path}/")) == ["other/c.png", "train/a.png", "val/b.png"]
    assert keys(open_dataset(f"{tmp_path}/", split="all")) == ["other/c.png", "train/a.png", "val/b.png"]
    val = open_dataset(f"{tmp_path}/", split="val")
    assert (keys(val), val.split) == (["b.png"], "val")
    for unknown in ("test", "other"):
        with pytest.raises(
            UsageError, match=rf"no split '{unknown}' .*it has train, val\. Leave --split out"
        ):
            open_dataset(f"{tmp_path}/", split=unknown)


def test_images_beside_labels_are_a_split_layout(photos):
    train = open_dataset(f"{photos}/", split="train")
    assert pairs(train) == {"a.jpg": "a.png", "b.jpg": None}
    assert [item.key for item in train.unlabelled] == ["b.jpg"]
    assert train.space is not None
    assert train.space.names == ("sky", "road")
    assert pairs(open_dataset(f"{photos}/")) == {
        "train/a.jpg": "a.png",
        "train/b.jpg": None,
        "val/c.jpg": "c.png",
    }
    with pytest.raises(UsageError, match=r"no split 'test'.*it has train, val"):
        open_dataset(f"{photos}/", split="test")


def test_a_split_without_labels_beside_one_with_some_is_unlabelled(photos):
    shutil.rmtree(photos / "labels" / "train")
    train = open_dataset(f"{photos}/", split="train")
    assert pairs(train) == {"a.jpg": None, "b.jpg": None}
    assert f"'{photos / 'labels'}' has no 'train': these images count as unlabelled" in train.remarks
    (photos / "labels" / "a.png").touch()  # labels that lie flat count
    assert pairs(open_dataset(f"{photos}/", split="train")) == {"a.jpg": "a.png", "b.jpg": None}
    val = open_dataset(f"{photos}/", split="val")
    assert pairs(val) == {"c.jpg": "c.png"}
    assert not any("unlabelled" in remark for remark in val.remarks)


def test_without_a_class_file_labels_beside_the_images_are_left_alone(photos):
    (photos / "classes.json").rename(photos.parent / "names.json")
    plain = open_dataset(f"{photos}/", split="val")
    assert (pairs(plain), plain.space) == ({"c.jpg": None}, None)
    given = open_dataset(f"{photos}/", split="val", class_file=photos.parent / "names.json")
    assert pairs(given) == {"c.jpg": "c.png"}
    assert given.space is not None


@pytest.mark.parametrize("part", ["labels", "labels/train"])
def test_labels_are_given_with_or_without_the_split(photos, part):
    options = {"labels": photos / part, "class_file": photos / "classes.json"}
    for dataset in (
        open_dataset(f"{photos}/images/train/", **options),
        open_dataset(f"{photos}/images/", split="train", **options),
        open_dataset(f"{photos}/", split="train", **options),
    ):
        assert pairs(dataset) == {"a.jpg": "a.png", "b.jpg": None}


def test_labels_need_a_class_file_a_folder_and_a_match(photos, tmp_path):
    images, classes = f"{photos}/images/train/", photos / "classes.json"
    with pytest.raises(UsageError, match="--labels needs --class-file"):
        open_dataset(images, labels=photos / "labels")
    with pytest.raises(UsageError, match=r"label folder '.*gone' does not exist"):
        open_dataset(images, labels=tmp_path / "gone", class_file=classes)
    with pytest.raises(UsageError, match=r"No label .*first image is 'a\.jpg', the first label 'c'"):
        open_dataset(images, labels=photos / "labels" / "val", class_file=classes)


def test_two_files_of_one_relative_name_are_named(photos):
    picture(photos / "labels/train/a.tif")
    with pytest.raises(
        UsageError, match=r"'.*labels/train/a\.png' and '.*labels/train/a\.tif' have the same .* 'a'"
    ):
        open_dataset(f"{photos}/", split="train")
    (photos / "labels/train/a.tif").unlink()
    picture(photos / "images/train/b.png")
    with pytest.raises(
        UsageError, match=r"'.*images/train/b\.jpg' and '.*images/train/b\.png' have the same .* 'b'"
    ):
        open_dataset(f"{photos}/", split="train")
    assert len(open_dataset(f"{photos}/images/train/").items) == 3  # without labels nothing is ambiguous


def test_the_same_name_in_two_folders_is_no_clash(tmp_path):
    picture(*(tmp_path / "i" / name for name in ("x/a.jpg", "y/a.jpg")), tmp_path / "l/y/a.png")
    (tmp_path / "c.txt").write_text("sky\nroad\n")
    dataset = open_dataset(f"{tmp_path}/i/", labels=tmp_path / "l", class_file=tmp_path / "c.txt")
    assert [item.label for item in dataset.items] == [None, tmp_path / "l/y/a.png"]


def test_folders_that_are_missing_empty_or_files(tmp_path):
    with pytest.raises(
        UsageError, match=r"No image in .*\.bmp, .*\.jpeg, \.jpg, \.png, \.tif, \.tiff, \.webp"
    ):
        open_dataset(f"{tmp_path}/")
    with pytest.raises(UsageError, match="gone' does not exist"):
        open_dataset(f"{tmp_path}/gone/")
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="is a file; give the folder"):
        open_dataset(f"{tmp_path}/a.png")
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"photos.zip' is an archive; unpack it and give the folder"):
        open_dataset(f"{tmp_path}/photos.zip")
    (tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match=r"No image in '.*train'"):
        open_dataset(f"{tmp_path}/", split="train")


def test_a_folder_named_like_a_known_data_set_is_not_taken_for_it(tmp_path, monkeypatch):
    picture(tmp_path / "voc2012/a.png")
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("./voc2012")
    assert (dataset.name, dataset.space) == ("voc2012-folder", None)
    with pytest.raises(UsageError, match=r"Give --root.*write '\./voc2012'"):
        open_dataset("voc2012")


_OPENED: list[str] = []
_WATCHING: list[bool] = []


def _watch(event: str, arguments: tuple) -> None:
    if _WATCHING and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _OPENED.append(os.fsdecode(arguments[0]))


def test_no_label_is_opened_to_open_a_data_set(photos):
    sys.addaudithook(_watch)  # cannot be taken off again, only told to rest
    _WATCHING.append(True)
    _OPENED.clear()
    try:
        open_dataset(f"{photos}/", split="train")
        open_dataset(f"{photos}/", labels=photos / "labels", class_file=photos / "classes.json")
        open_dataset("camvid", root=photos)
        (photos / "classes.json").read_text()  # proof that the hook sees what is opened
    finally:
        _WATCHING.clear()
    assert any(name.endswith("classes.json") for name in _OPENED)
    assert not [name for name in _OPENED if "labels" in name or "images" in name]


def test_broken_labels_and_folders_named_like_labels_do_no_harm(photos):
    (photos / "labels/train/a.png").write_bytes(b"no image")
    (photos / "labels/train/b.png").mkdir()
    assert pairs(open_dataset(f"{photos}/", split="train")) == {"a.jpg": "a.png", "b.jpg": None}


# Known data sets -----------------------------------------------------------------------------------------


def test_names_and_splits_are_checked(photos):
    with pytest.raises(UsageError, match="No folder and no data set 'camvit'; did you mean 'camvid'"):
        open_dataset("camvit")
    with pytest.raises(UsageError, match="'camvid' has no split 'tests'; did you mean 'test'"):
        open_dataset("camvid", root=photos, split="tests")
    with pytest.raises(UsageError, match=r"Where does 'camvid' lie.*--root"):
        open_dataset("camvid")
    with pytest.raises(UsageError, match=r"root '.*gone' of 'camvid' does not exist"):
        open_dataset("camvid", root=photos / "gone")


@pytest.mark.parametrize("wrong", ["..", "images", "images/val"])
def test_a_root_that_is_too_high_or_too_low_is_corrected(photos, wrong):
    with pytest.raises(UsageError, match=re.escape(f"'{photos}' does: give it as --root.")):
        open_dataset("camvid", root=photos / wrong)


def test_a_root_without_the_split_says_what_it_holds(photos, tmp_path):
    with pytest.raises(
        UsageError, match=r"split 'test' of 'camvid'.* It holds train, val: give one as --split"
    ):
        open_dataset("camvid", root=photos, split="test")
    (tmp_path / "x" / "y" / "z" / "stray").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"expected VOC2012/.* It holds stray\."):
        open_dataset("voc2012", root=tmp_path / "x" / "y" / "z")


def test_bundled_scenes_open_without_a_root():
    for split in ("train", "val"):
        dataset = open_dataset("scenes", split=split)
        assert dataset.items
        assert not dataset.unlabelled
        assert dataset.space is not None
        assert len(dataset.space.names) == 10


def test_camvid(photos):
    dataset = open_dataset("camvid", root=photos)
    assert (dataset.name, dataset.split, dataset.protocol) == ("camvid", "train", "native")
    assert pairs(dataset) == {"a.jpg": "a.png", "b.jpg": None}


@pytest.mark.parametrize("base", ["", "VOC2012"])
def test_voc2012_reads_its_lists(tmp_path, base):
    root = tmp_path / base
    picture(
        *(root / "JPEGImages" / f"{name}.jpg" for name in ("1", "2", "3")), root / "SegmentationClass/1.png"
    )
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("1\n2\n")
    assert pairs(open_dataset("voc2012", root=tmp_path)) == {"1.jpg": "1.png", "2.jpg": None}


def test_cityscapes_takes_label_ids(tmp_path):
    picture(tmp_path / "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png")
    for kind in ("labelIds", "labelTrainIds", "color", "instanceIds"):
        picture(tmp_path / f"gtFine/val/ulm/ulm_0_gtFine_{kind}.png")
    dataset = open_dataset("cityscapes", root=tmp_path, split="val")
    assert pairs(dataset) == {"ulm/ulm_0_leftImg8bit.png": "ulm_0_gtFine_labelIds.png"}


def test_cocostuff_takes_the_curated_list_if_there_is_one(tmp_path):
    picture(*(tmp_path / f"images/val2017/{name}.jpg" for name in ("3", "1", "2")))
    picture(*(tmp_path / f"annotations/val2017/{name}.png" for name in ("1", "2")))
    every = open_dataset("cocostuff27", root=tmp_path, split="val")
    assert pairs(every) == {"1.jpg": "1.png", "2.jpg": "2.png", "3.jpg": None}
    assert every.protocol == "stego"
    curated = tmp_path / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt"
    curated.parent.mkdir(parents=True)
    curated.write_text("2\n1")
    assert keys(open_dataset("cocostuff27", root=tmp_path, split="val")) == ["1.jpg", "2.jpg"]


def test_the_published_counts_of_camvid():
    root = Path(__file__).parents[2] / ".." / "shared" / "data" / "camvid"
    if not root.is_dir():
        pytest.skip("CamVid is not on this machine")
    for split, count in {"train": 367, "val": 101, "test": 233}.items():
        dataset = open_dataset("camvid", root=root, split=split)
        assert len(dataset.items) == count
        assert not dataset.unlabelled
        assert keys(open_dataset(f"{root}/", split=split)) == keys(dataset)


def test_where_the_usual_split_has_no_labels_all_images_are_scored(photos, tmp_path):
    shutil.rmtree(photos / "labels" / "val")
    context = Context(Workspace(tmp_path / "space"))
    scored = open_data(EvalConfig(dataset=f"{photos}/"), context, default_split="val")
    assert pairs(scored) == {"train/a.jpg": "a.png", "train/b.jpg": None, "val/c.jpg": None}
    named = open_data(EvalConfig(dataset=f"{photos}/", split="val"), context, default_split="val")
    assert pairs(named) == {"c.jpg": None}
