"""What a key is made from: every file that decides a result, as it was when the key was made."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unsupseg_cli import (
    Context,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    TrainConfig,
    extract,
    predict,
    pseudolabel,
    train,
)
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.tables import score_table
from unsupseg_cli.contents.digests import file_digests
from unsupseg_cli.contents.option_files import decided_by
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.inference import extraction
from unsupseg_cli.methods.kmeans.config import TrainOptions
from unsupseg_cli.methods.maskdistill.config import TrainOptions as MaskDistill
from unsupseg_cli.pipeline.report import gather
from unsupseg_cli.report.page import render
from unsupseg_cli.stages.evaluate import STAGE as EVALUATE
from unsupseg_cli.stages.evaluate import EvalConfig
from unsupseg_cli.stages.import_masks import STAGE as IMPORT
from unsupseg_cli.stages.import_masks import ImportMasksConfig

CLASSES = 3


@pytest.fixture
def photos(tmp_path):
    """Six pictures of two halves, and their labels."""
    for number in range(6):
        rng = np.random.default_rng(number)
        truth = (np.arange(96) * CLASSES // 96)[None].repeat(64, 0).astype(np.uint8)
        pixels = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])[truth] + rng.integers(
            -30, 30, (64, 96, 3)
        )
        for kind, values in (("images", pixels), ("labels", truth)):
            (tmp_path / "photos" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / "photos" / kind / f"{number}.png")
    (tmp_path / "photos" / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def _blocks_of_one_view(monkeypatch):
    monkeypatch.setattr(extraction, "views_per_block", lambda *_: 1)


def features_of(photos, context, **options):
    config = {"dataset": f"{photos}/", "size": 64, "workers": 0, "device": "cpu", "backbone": "untrained"}
    return extract(ExtractConfig(**{**config, **options}), context)


def predictions_of(photos, context):
    features = features_of(photos, context)
    masks = pseudolabel(PseudolabelConfig(features=features.id, classes=CLASSES, sheet=0), context)
    model = train(TrainConfig(pseudolabels=masks.id), context, options=TrainOptions(steps=20))
    return predict(PredictConfig(model=model.id, dataset=f"{photos}/", workers=0), context)


def evaluate(photos, context, predictions, **options):
    return EVALUATE(
        EvalConfig(predictions=predictions.id, dataset=f"{photos}/", workers=0, sheet=0, **options), context
    )


# What enters the key ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes",
    [
        {"classes": ["a", "b"], "void": [2, 255]},
        {"classes": [{"name": "a", "ids": [0, 1]}, {"name": "b", "id": 2}]},
        {"classes": ["a", "b", "other name"]},
        {"classes": [{"name": name, "color": [9 * n, 0, 0]} for n, name in enumerate("abc")]},
    ],
    ids=["void", "ids", "names", "colours"],
)
def test_scores_are_made_again_when_the_class_file_says_something_else(photos, context, classes):
    predictions = predictions_of(photos, context)
    before = evaluate(photos, context, predictions)
    assert evaluate(photos, context, predictions).id == before.id
    (photos / "classes.json").write_text(json.dumps(classes))
    after = evaluate(photos, context, predictions)
    assert after.id != before.id
    names = [entry if isinstance(entry, str) else entry["name"] for entry in classes["classes"]]
    assert after.manifest.summary["class_names"] == names


def test_scores_are_made_again_when_a_label_changes(photos, context):
    predictions = predictions_of(photos, context)
    before = evaluate(photos, context, predictions)
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(photos / "labels" / "3.png")
    assert evaluate(photos, context, predictions).manifest.key != before.manifest.key


def test_a_file_of_weights_among_the_options_counts_by_its_content(tmp_path, context):
    file = tmp_path / "resnet.safetensors"
    options, keys = MaskDistill(arch="deeplabv3_resnet50", resnet=str(file)), []
    for value in (0, 1):
        save_file({"weight": torch.full((3,), float(value))}, file)
        keys.append(decided_by(options, context)["resnet"])
    assert keys[0] != keys[1]
    moved = file.rename(tmp_path / "other.safetensors")
    assert decided_by(options.model_copy(update={"resnet": str(moved)}), context)["resnet"] == keys[1]
    assert decided_by(MaskDistill(), context)["resnet"] == "hub"


def test_labels_of_a_named_data_set_are_not_taken_from_elsewhere_in_silence(photos, context):
    with pytest.raises(UsageError, match="--class-file has no effect"):
        extract(ExtractConfig(dataset="scenes", class_file=photos / "classes.json"), context)


# Files that vanish or change -------------------------------------------------------------------------------


class Interfering:
    """Does something to files as soon as the first image was read."""

    def __init__(self, monkeypatch, act):
        from unsupseg_cli.data import loader

        read, acted = loader.read_image, []

        def interfere(path, *how):
            image = read(path, *how)
            if not acted:
                acted.append(True)
                act()
            return image

        monkeypatch.setattr(loader, "read_image", interfere)


def test_images_that_vanish_during_a_run_are_an_error_and_the_same_call_goes_on(photos, context, monkeypatch):
    whole = features_of(photos, Context(Workspace(context.workspace.root / "undisturbed")))
    away = photos.with_name("away")
    with monkeypatch.context() as patch:
        Interfering(patch, lambda: (photos / "images").rename(away))
        with pytest.raises(UnsupsegError, match=r"could be read when this call began.*bring it back"):
            features_of(photos, context)
    assert not list(context.workspace.artifacts())
    away.rename(photos / "images")
    features = features_of(photos, context)
    assert features.manifest.summary["images"] == 6
    assert features.manifest.digest == whole.manifest.digest


def test_an_image_that_changes_during_a_run_publishes_nothing(photos, context, monkeypatch):
    old = (photos / "images" / "4.png").read_bytes()

    def swap():
        Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(photos / "images" / "new.png")
        (photos / "images" / "new.png").replace(photos / "images" / "4.png")

    with monkeypatch.context() as patch:
        Interfering(patch, swap)
        with pytest.raises(UnsupsegError, match=r"4\.png' was changed while it was in use"):
            features_of(photos, context)
    assert not list(context.workspace.artifacts())
    (photos / "images" / "4.png").write_bytes(old)
    features = features_of(photos, context)
    other = Context(Workspace(context.workspace.root / "undisturbed"))
    assert features.manifest.digest == features_of(photos, other).manifest.digest


def test_labels_that_change_during_an_evaluation_are_an_error(photos, context, monkeypatch):
    from unsupseg_cli.inference import evaluation

    predictions, read = predictions_of(photos, context), evaluation.read_truth

    def interfere(item, *rest):
        Image.fromarray(np.ones((64, 96), np.uint8)).save(photos / "labels" / "0.png")
        return read(item, *rest)

    monkeypatch.setattr(evaluation, "read_truth", interfere)
    with pytest.raises(UnsupsegError, match=r"labels/0\.png' was changed while"):
        evaluate(photos, context, predictions)


def test_masks_that_change_during_an_import_are_an_error(photos, context, monkeypatch):
    from unsupseg_cli.contents import mask_writer

    def interfere(*_):
        Image.fromarray(np.ones((64, 96), np.uint8)).save(photos / "labels" / "0.png")

    monkeypatch.setattr(mask_writer, "draw_masks", interfere)
    config = ImportMasksConfig(
        masks_from=photos / "labels", dataset=f"{photos / 'images'}/", from_labels=True
    )
    with pytest.raises(UnsupsegError, match=r"labels/0\.png' was changed while"):
        IMPORT(config, context)


def test_a_changed_file_of_equal_size_and_time_is_seen(photos, context):
    path = photos / "images" / "0.png"
    path.write_bytes(b"one")
    before, times = file_digests([("0", path)], context), path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_digests([("0", path)], context) != before


def test_unreadable_is_not_remembered(photos, context, monkeypatch):
    from unsupseg_cli.contents import digests

    path = photos / "images" / "0.png"
    with monkeypatch.context() as patch:
        patch.setattr(digests, "digest_or_unreadable", lambda _: "unreadable")
        assert file_digests([("0", path)], context) == [["0", "unreadable"]]
    ((_, digest),) = file_digests([("0", path)], context)
    assert len(digest) == 64


def test_a_damaged_image_is_skipped_but_not_under_strict_even_when_it_was_skipped_before(photos, context):
    (photos / "images" / "2.png").write_bytes(b"no image")
    features = features_of(photos, context)
    assert list(features.manifest.summary["skipped"]) == ["2.png"]
    with pytest.raises(UnsupsegError, match="made without unreadable images, 1 of them"):
        features_of(photos, context, strict=True)


def test_a_call_that_was_begun_with_other_files_begins_anew(photos, context, monkeypatch):
    """An image is replaced after its block was made, the call is killed, and the old image comes back."""
    old = photos.with_name("old.png")
    shutil.copy2(photos / "images" / "0.png", old)
    store = extraction.Extraction._store

    def killed(self, block, *rest):
        if block == 1:
            raise KeyboardInterrupt
        store(self, block, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(extraction.Extraction, "_store", killed)
        with pytest.raises(KeyboardInterrupt):
            features_of(photos, context)
    shutil.copy2(old, photos / "images" / "0.png")
    said = []
    monkeypatch.setattr(type(context.reporter), "info", lambda _, message: said.append(message))
    features_of(photos, context)
    assert any("begins anew" in line for line in said)


# Predictions and the images that they are of ----------------------------------------------------------------


def test_predictions_are_scored_on_their_own_images_only(photos, context):
    """Folders whose images have the same names are told apart by what the images show."""
    predictions = predictions_of(photos, context)
    other = photos.with_name("other")
    shutil.copytree(photos, other)
    assert evaluate(other, context, predictions).manifest.summary["images"] == 6  # a copy is the same
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(other / "images" / "1.png")
    with pytest.raises(UsageError, match=r"1 of 6 images are not those that .* \(the first: '1\.png'\)"):
        evaluate(other, context, predictions)
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(photos / "images" / "5.png")
    with pytest.raises(UsageError, match=r"the first: '5\.png'"):
        evaluate(photos, context, predictions)


def test_a_part_of_the_predicted_images_may_be_scored(photos, context):
    predictions = predictions_of(photos, context)
    for number in (0, 3):
        (photos / "labels" / f"{number}.png").unlink()
        (photos / "images" / f"{number}.png").unlink()
    assert evaluate(photos, context, predictions).manifest.summary["images"] == 4


def test_splits_of_equal_names_are_not_confused(photos, context):
    predictions = predictions_of(photos, context)
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (photos / kind / split).mkdir()
        for path in sorted((photos / kind).glob("*.png")):
            path.rename(photos / kind / "train" / path.name)
        for path in sorted((photos / kind / "train").glob("*.png")):
            number = (int(path.stem) + 1) % 6
            shutil.copy2(path, photos / kind / "val" / f"{number}.png")
    with pytest.raises(UsageError, match="6 of 6 images are not those"):
        evaluate(photos, context, predictions, split="val")
    assert evaluate(photos, context, predictions, split="train").manifest.summary["images"] == 6


def test_a_matching_that_was_taken_is_told_as_such(photos, context):
    predictions = predictions_of(photos, context)
    first = evaluate(photos, context, predictions)
    second = evaluate(photos, context, predictions, assignment=first.id)
    assert score_table(first.manifest.summary).title.split("matching ")[1].startswith("hungarian,")
    assert score_table(second.manifest.summary).title.split("matching ")[1].startswith(f"as in '{first.id}',")
    page = render(gather([first, second], context))
    assert "as in" in page.split("matching")[1][:200] or f"as in &#39;{first.id}&#39;" in page


def test_a_matching_of_other_classes_is_refused(photos, context):
    predictions = predictions_of(photos, context)
    evaluation = evaluate(photos, context, predictions)
    (photos / "classes.json").write_text(json.dumps({"classes": ["a", {"name": "b", "ids": [1, 2]}]}))
    with pytest.raises(UsageError, match="there are 2 classes here"):
        evaluate(photos, context, predictions, assignment=evaluation.id)
