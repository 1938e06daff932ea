from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.datasets import dataset_names, open_dataset, space_of
from unsupseg_cli.data.labels import named_space


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def test_folder_is_walked_without_hidden_files_and_link_loops(tmp_path):
    for name in ("b.png", "sub/ü.jpg", ".hidden/x.png", "sub/.y.png"):
        picture(tmp_path / name)
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert [item.key for item in open_dataset(f"{tmp_path}/").items] == ["b.png", "sub/ü.jpg"]


def test_labels_are_paired_by_stem_and_never_opened(tmp_path):
    for name in ("images/train/a.jpg", "images/train/b.jpg"):
        picture(tmp_path / name)
    (tmp_path / "labels/train").mkdir(parents=True)
    classes = tmp_path / "classes.txt"
    classes.write_text("sky\nroad\n")
    (tmp_path / "labels/train/b.png").write_bytes(b"no image")
    dataset = open_dataset(f"{tmp_path}/images/train/", labels=tmp_path / "labels/train", class_file=classes)
    assert [item.key for item in dataset.unlabelled] == ["a.jpg"]
    assert dataset.items[1].label == tmp_path / "labels/train/b.png"
    picture(tmp_path / "images/train/b.png")
    with pytest.raises(UsageError, match=r"a\.(jpg|png)|b\.(jpg|png)"):
        open_dataset(f"{tmp_path}/images/train/", labels=tmp_path / "labels/train", class_file=classes)


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'camvid'"):
        open_dataset("camvit")
    with pytest.raises(UsageError, match=r"\.webp"):
        open_dataset(f"{tmp_path}/")
    with pytest.raises(UsageError, match="does not exist"):
        open_dataset(f"{tmp_path}/gone/")
    picture(tmp_path / "camvid/images/train/a.png")
    (tmp_path / "camvid/labels").mkdir()
    with pytest.raises(UsageError, match="give it as --root"):
        open_dataset("camvid", root=tmp_path)
    with pytest.raises(UsageError, match="tests"):
        open_dataset("camvid", root=tmp_path / "camvid", split="tests")


def test_bundled_scenes_open_without_a_root():
    dataset = open_dataset("scenes", split="val")
    assert dataset.items
    assert not dataset.unlabelled


@pytest.mark.parametrize("name", dataset_names())
def test_every_known_data_set_has_a_space(name):
    assert len(space_of(name).names) == len(space_of(name).colors) > 1


def test_published_spaces_map_raw_values():
    coco, city = named_space("cocostuff27"), named_space("cityscapes27")
    raw = np.array([[0, 71, 181, 255]])
    assert coco.encode(raw, Path("x.png")).tolist() == [[9, 0, 24, -1]]
    assert city.encode(np.array([[7, 33, 0]]), Path("x.png")).tolist() == [[0, 26, -1]]
    covered = coco.encode(np.arange(182)[None], Path("x.png"))
    assert np.bincount(covered[0]).tolist() == [
        6, 6, 10, 10, 8, 8, 8, 10, 6, 1, 10, 8, 2, 6, 4, 11, 4, 11, 7, 2, 6, 11, 9, 2, 6, 5, 5
    ]  # fmt: skip
