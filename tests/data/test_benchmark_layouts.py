"""Every known data set from its official files to the confusion matrix."""

import re
from pathlib import Path

import numpy as np
import pytest
from fixtures.layouts import NAMES, build, potsdam_tiles
from PIL import Image
from typer.testing import CliRunner

from unsupseg_cli.cli.main import app
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.data.datasets import open_dataset, space_of
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.labels import named_space
from unsupseg_cli.data.potsdam import prepare_potsdam, split_of
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.metrics.confusion import Confusion

# The classes of the first two stripes of the first labelled image, followed by hand through the published tables.
FIRST = {
    "cityscapes": ("road", "sidewalk"),
    "cityscapes19": ("road", "sidewalk"),
    "cocostuff27": ("person-things", "vehicle-things"),
    "cocostuff15": (None, "sky-stuff"),
    "cocostuff3": (None, "sky-stuff"),
    "cocostuff171": ("person", "car"),
    "coco81": ("person", "car"),
    "coco20k": ("person", "car"),
    "potsdam3": ("roads and cars", "buildings and clutter"),
    "voc2007": ("background", "person"),
    "voc2012": ("background", "person"),
    "lip19": ("background", "upper-clothes"),
    "lip16": ("background", "upper-clothes"),
    "lip5": ("background", "upper body"),
    "imagenet-s50": ("other", "class 1"),
    "imagenet-s300": ("other", "class 1"),
    "imagenet-s919": ("other", "class 1"),
    "kitti-step": ("road", "sky"),
}


def opened(name, root):
    return open_dataset(name, root=root, split="train" if name == "coco20k" else "val")


@pytest.mark.parametrize("name", NAMES)
def test_one_pixel_from_the_file_to_the_confusion_matrix(name, tmp_path):
    build(name, tmp_path)
    dataset = opened(name, tmp_path)
    item = next(one for one in dataset.items if one.label is not None)
    image = read_image(item.image)
    truth = read_truth(item, dataset.space, image.shape[:2])
    assert truth.shape == image.shape[:2]
    runs = [int(truth[0, 0])]
    for value in truth[0].tolist():
        if value != runs[-1]:
            runs.append(value)
    names = [None if value == VOID else dataset.space.names[value] for value in runs]
    assert tuple(names[:2]) == FIRST[name]
    confusion = Confusion(3, len(dataset.space.names))
    prediction = np.full(truth.shape, 1)
    prediction[0, 0] = 2
    confusion.update(prediction, truth)
    labelled = int((truth != VOID).sum())
    assert confusion.matrix.sum() == labelled
    if truth[0, 0] != VOID:
        assert confusion.matrix[2, truth[0, 0]] == 1
        assert confusion.matrix[2].sum() == 1


@pytest.mark.parametrize("name", NAMES)
def test_missing_labels_are_counted_and_void_is_void(name, tmp_path):
    build(name, tmp_path)
    train = open_dataset(name, root=tmp_path)
    assert train.items
    if not name.startswith(("imagenet", "kitti", "coco20k")):
        assert len(train.unlabelled) == 1
    space = space_of(name)
    assert len(space.names) == len(set(space.names)) == len(space.colors)
    assert not set(space.mapping) & space.void


def test_published_tables():
    """Cells of the tables in the protocol pages of STEGO, PiCIE, TransFGU and CAUSE."""
    coco = named_space("cocostuff27")
    groups = [6, 6, 10, 10, 8, 8, 8, 10, 6, 1, 10, 8, 2, 6, 4, 11, 4, 11, 7, 2, 6, 11, 9, 2, 6, 5, 5]
    assert [sum(target == index for target in coco.mapping.values()) for index in range(27)] == groups
    fine = named_space("cocostuff171")
    assert (len(fine.names), fine.mapping[0], fine.mapping[89], fine.mapping[91], fine.mapping[181]) == (
        171, 0, 79, 80, 170,
    )  # fmt: skip
    assert sorted(set(range(182)) - set(fine.mapping)) == [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    # Every fine class has a name that belongs to its coarse class.
    for raw, index in fine.mapping.items():
        kind = coco.names[coco.mapping[raw]].rsplit("-", 1)[1]
        assert fine.kinds[index] + "s" * (kind == "things") == kind
    things = named_space("coco81")
    assert (things.mapping[91], things.mapping[0], things.mapping[89]) == (0, 1, 80)
    city = named_space("cityscapes27")
    assert [city.mapping[raw] for raw in (7, 11, 20, 26, 33)] == [0, 4, 13, 19, 26]
    potsdam = named_space("potsdam3")
    assert [potsdam.mapping[raw] for raw in range(6)] == [0, 1, 2, 2, 0, 1]
    five, sixteen = named_space("lip6"), named_space("lip17")
    assert [five.mapping[raw] for raw in range(20)] == [
        0, 1, 1, 3, 1, 2, 2, 2, 5, 4, 2, 2, 2, 1, 3, 3, 4, 4, 5, 5,
    ]  # fmt: skip
    assert [sixteen.mapping[raw] for raw in range(14, 20)] == [14, 14, 15, 15, 16, 16]
    three, fifteen = named_space("cocostuff3"), named_space("cocostuff15")
    assert three.names == ("sky-stuff", "plant-stuff", "ground-stuff")
    assert (fifteen.mapping[101], fifteen.mapping[178]) == (0, 14)


def test_curated_and_full_lists(tmp_path):
    build("cocostuff27", tmp_path)
    assert len(open_dataset("cocostuff27", root=tmp_path, split="val").items) == 3
    assert len(open_dataset("cocostuff27", root=tmp_path, split="val-full").items) == 4


def test_a_list_of_images_that_are_not_there_is_named(tmp_path):
    build("voc2012", tmp_path)
    listing = tmp_path / "VOC2012/ImageSets/Segmentation/val.txt"
    listing.write_text("2007_000006\n2010_009999\n")
    with pytest.raises(UsageError, match=r"val\.txt' names 1 of 2 images .*2010_009999.*not complete"):
        open_dataset("voc2012", root=tmp_path, split="val")


def test_train_ids_in_place_of_label_ids_are_told(tmp_path):
    build("cityscapes", tmp_path)
    for path in (tmp_path / "gtFine/val").rglob("*_labelIds.png"):
        path.with_name(path.name.replace("labelIds", "labelTrainIds")).replace(path)
    dataset = open_dataset("cityscapes", root=tmp_path, split="val")
    size = read_image(dataset.items[0].image).shape[:2]
    with pytest.raises(UsageError, match=r"train ids; use the \*_gtFine_labelIds"):
        read_truth(dataset.items[0], dataset.space, size)


@pytest.mark.parametrize("wrong", ["..", "leftImg8bit"])
def test_a_root_too_high_or_too_low_is_corrected(tmp_path, wrong):
    root = tmp_path / "city"
    build("cityscapes", root)
    with pytest.raises(UsageError, match=re.escape(f"'{root}' does: give it as --root.")):
        open_dataset("cityscapes", root=root / wrong, split="val")


def test_official_potsdam_tiles_are_cut_by_a_fixed_rule(tmp_path):
    potsdam_tiles(tmp_path / "isprs")
    counts = prepare_potsdam(tmp_path / "isprs", tmp_path / "cut", iter)
    assert counts["train"] + counts["val"] == 6
    assert counts["unlabelled"] == 6
    assert counts["val"] == sum(
        split_of(f"2_10_{i:02d}_{j:02d}") == "val" for i in range(2) for j in range(3)
    )
    dataset = open_dataset("potsdam3", root=tmp_path / "cut", split="train")
    assert not dataset.unlabelled
    item = dataset.items[0]
    image = read_image(item.image)
    assert image.shape == (200, 200, 3)
    row, column = (int(part) for part in item.image.stem.split("_")[-2:])
    tile = np.array(Image.open(tmp_path / "isprs/5_Labels_all/top_potsdam_2_10_label.tif"))
    corner = tile[400 * row + 1, 400 * column + 1].tolist()
    expected = {(255, 255, 255): 0, (255, 255, 0): 0, (0, 0, 255): 1, (255, 0, 0): 1}.get(tuple(corner), 2)
    assert read_truth(item, dataset.space, (200, 200))[0, 0] == expected
    with pytest.raises(UsageError, match="not empty"):
        prepare_potsdam(tmp_path / "isprs", tmp_path / "cut", iter)
    with pytest.raises(UsageError, match="top_potsdam"):
        prepare_potsdam(tmp_path / "cut", tmp_path / "new", iter)


@pytest.mark.parametrize("name", ["cityscapes", "potsdam3", "imagenet-s50"])
def test_check_counts_and_shows(name, tmp_path):
    build(name, tmp_path)
    result = CliRunner().invoke(app, ["datasets", "check", name, "--root", str(tmp_path), "--split", "val"])
    assert result.exit_code == 0, result.output
    assert f"{name}/val: 4 images" in result.stdout
    assert "official set has" in result.stderr
    shown = CliRunner().invoke(app, ["datasets", "show", name])
    assert shown.exit_code == 0
    for part in ("licence:", "images: train", "reference:", "protocol:"):
        assert part in shown.stdout


def test_the_real_voc_in_its_own_layout():
    root = Path(__file__).parents[2] / ".." / "shared" / "data" / "VOCdevkit"
    if not root.is_dir():
        pytest.skip("PASCAL VOC is not on this machine")
    dataset = open_dataset("voc2012", root=root, split="val")
    assert not dataset.unlabelled
    classes = set()
    for item in dataset.items:
        truth = read_truth(item, dataset.space, read_image(item.image).shape[:2])
        assert (truth == VOID).any()  # the borders of the objects
        classes |= set(np.unique(truth).tolist()) - {VOID}
    assert 0 in classes
    assert classes <= set(range(21))
    assert len(classes) > 15
