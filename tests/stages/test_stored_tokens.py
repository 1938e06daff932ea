"""Models that read the tokens that `extract` stored, instead of running their backbone."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unsupseg_cli import (
    Context,
    EvalConfig,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    RefineConfig,
    TrainConfig,
    Workspace,
    evaluate,
    extract,
    predict,
    pseudolabel,
    refine,
    train,
)
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.label_maps import read_ids
from unsupseg_cli.contents.skipped import Skipped
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.inference.segment import segment_items
from unsupseg_cli.inference.stored import segment_stored
from unsupseg_cli.models import heads
from unsupseg_cli.models.backbone import Backbone, load_backbone
from unsupseg_cli.models.heads import PIXEL_ARRAYS, TOKEN_ARRAYS, DenseNetwork, register_head
from unsupseg_cli.models.network_model import NetworkModel

HERE = {"workers": 0, "device": "cpu"}
TINY = {**HERE, "backbone": "tiny", "precision": "fp32", "size": 64}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Four scenes of each split, one of val cut short; their features, mirrored too in val, and a k-means model."""
    whole, few = Path(__file__).parents[2] / "samples" / "scenes", tmp_path_factory.mktemp("scenes")
    for path in ("images/train", "images/val", "labels/train", "labels/val"):
        (few / path).mkdir(parents=True)
        for file in sorted((whole / path).iterdir())[::8][:4]:
            shutil.copy(file, few / path)
    shutil.copy(whole / "classes.json", few)
    broken = sorted((few / "images" / "val").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:200])
    context, data = Context(Workspace(tmp_path_factory.mktemp("stored"))), {"dataset": f"{few}/"}
    features = extract(ExtractConfig(**TINY, **data, split="train"), context)
    pseudolabel(PseudolabelConfig(**HERE, features=features.id, classes=4, sheet=0), context)
    stored = extract(ExtractConfig(**TINY, **data, split="val", flip=True, keep=TOKEN_ARRAYS), context)
    model = train(TrainConfig(method="kmeans", classes=4, features=features.id, device="cpu"), context)
    return SimpleNamespace(context=context, data=data, features=stored, model=model, broken=broken)


def score(scenes, **options):
    config = EvalConfig(**HERE, **scenes.data, model=scenes.model.id, sheet=0, **options)
    return evaluate(config, scenes.context).manifest


@pytest.fixture
def no_backbone(monkeypatch):
    def forward(*args, **kwargs):
        raise AssertionError("the backbone ran")

    monkeypatch.setattr(Backbone, "forward", forward)


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"crf": True}, {"linear_probe": True}], ids=str)
def test_scores_are_those_of_the_model_itself(scenes, options):
    plain = score(scenes, split="val", precision="fp32", **options)
    stored = score(scenes, features=scenes.features.id, **options)
    assert plain.key != stored.key  # tokens are rounded when they are stored
    assert stored.data.split == "val"  # the split of the features
    for name in ("miou", "accuracy"):
        assert stored.summary[name] == pytest.approx(plain.summary[name], abs=2e-3)
    if "linear_probe" in options:
        assert stored.summary["linear_probe"]["miou"] == pytest.approx(
            plain.summary["linear_probe"]["miou"], abs=2e-3
        )


def test_scores_by_tokens_of_int8_are_close_and_told(scenes, monkeypatch):
    rounded = extract(ExtractConfig(**TINY, **scenes.data, split="val", store_dtype="int8"), scenes.context)
    told = []
    monkeypatch.setattr(Silent, "info", lambda _, message: told.append(message))
    plain, coded = (score(scenes, features=features.id) for features in (scenes.features, rounded))
    for name in ("miou", "accuracy"):
        assert coded.summary[name] == pytest.approx(plain.summary[name], abs=0.02)
    assert [message for message in told if "stored as int8" in message] == [
        f"the tokens of '{rounded.id}' are stored as int8, less exact than the backbone's"
    ]


def test_no_backbone_runs_and_none_is_loaded(scenes, no_backbone, monkeypatch):
    monkeypatch.setattr("unsupseg_cli.contents.model.load_frozen", lambda *args, **kwargs: 1 / 0)
    assert score(scenes, features=scenes.features.id, flip=True).summary["images"] == 3


def test_label_maps_and_what_is_refined_of_them_agree(scenes):
    names = {"model": scenes.model.id, "keep": "scores", **HERE}
    plain = predict(PredictConfig(**names, **scenes.data, split="val", precision="fp32"), scenes.context)
    stored = predict(PredictConfig(**names, features=scenes.features.id), scenes.context)
    assert stored.manifest.summary["keys"] == plain.manifest.summary["keys"]
    refined = [refine(RefineConfig(predictions=one.id, **HERE), scenes.context) for one in (plain, stored)]
    for one, other in ((plain, stored), refined):
        for key in set(plain.manifest.summary["keys"]) - set(plain.manifest.summary["skipped"]):
            assert np.mean(read_ids(one.path, key) == read_ids(other.path, key)) > 0.995


@pytest.fixture
def all_arrays():
    """A network that reads every array that there is."""
    before = dict(heads.HEADS)

    @register_head("test-all")
    class All(DenseNetwork):
        reads = (*TOKEN_ARRAYS, *PIXEL_ARRAYS)

        def __init__(self, classes):
            super().__init__()
            self.classes = classes

        def forward(self, arrays):
            batch, height, width, _ = arrays["patch"].shape
            cells = [arrays[name].float() for name in ("patch", "query", "key")]
            cells += [arrays["attention"].float().movedim(1, -1) * 10]
            cells += [arrays[name][:, None, None].float() for name in ("cls", "pooled")]
            for name in PIXEL_ARRAYS:
                patches = arrays[name].unflatten(-1, (width, -1)).unflatten(-3, (height, -1))
                cells.append(patches.mean((-3, -1)).movedim(1, -1))
            sums = torch.stack(
                [
                    value[..., :: index + 1].mean(-1).expand(batch, height, width)
                    for value in cells
                    for index in (0, 1)
                ]
            )
            return sums.view(self.classes, -1, batch, height, width).sum(1).movedim(1, 0)

    yield "test-all"
    heads.HEADS.clear()
    heads.HEADS.update(before)


@pytest.mark.parametrize("flip", [False, True])
def test_a_network_is_given_what_it_would_read_itself(scenes, all_arrays, flip):
    backbone = load_backbone("tiny").prepare("fp32", torch.device("cpu"))
    itself = NetworkModel({"type": all_arrays, "classes": 4}, {}, backbone=backbone)
    of_tokens = NetworkModel({"type": all_arrays, "classes": 4}, {}, patch=backbone.patch_size)
    items = open_dataset(scenes.data["dataset"], split="val").items
    geometry = Geometry(kind="native", size=64)
    skipped = Skipped(scenes.context)
    options = {"flip": flip, "skipped": skipped}
    plain = list(segment_items(itself, items, geometry, Silent(), workers=0, **options))
    stored = list(
        segment_stored(of_tokens, FeatureSet(scenes.features), items, geometry, Silent(), **options)
    )
    for one, other in zip(plain, stored, strict=True):
        assert (one.item, one.height, one.width, one.view.box) == (
            other.item,
            other.height,
            other.width,
            other.view.box,
        )
        torch.testing.assert_close(one.scores.scores, other.scores.scores, atol=5e-3, rtol=5e-3)
        assert one.scores.scores.std() > 0.01


def test_features_of_images_that_were_changed_are_refused_with_the_reason(scenes, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(scenes.data["dataset"], photos)
    options = {"dataset": f"{photos}/", "split": "val", "flip": True}
    other = extract(ExtractConfig(**{**TINY, **options}), scenes.context)
    next((photos / "images" / "val").iterdir()).unlink()
    with pytest.raises(UsageError, match="of other images than those of photos/val here: changed since"):
        evaluate(EvalConfig(**HERE, model=scenes.model.id, features=other.id), scenes.context)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"split": "train"}, "of other images"),
        ({"size": 32}, "views native 32 bilinear instead of native 64 bilinear"),
        ({"filter": "nearest"}, "views native 64 nearest instead of native 64 bilinear"),
        ({"layer": -2}, "--layer -2 instead of -1"),
        ({"layer": "-1,-2"}, "--layer -1,-2 instead of -1"),
        ({"norm": False}, "--norm False instead of True"),
        ({"debias": 5}, "--debias 5 instead of 0"),
        ({"backbone": "untrained"}, "other weights"),
        ({"geometry": "five-crop"}, "views five-crop"),
        ({"flip": False}, "no mirror images"),
    ],
    ids=str,
)
def test_features_that_do_not_fit_are_refused_with_those_that_do(scenes, changed, said):
    options = {**TINY, "split": "val", "flip": True, **changed}
    other = extract(ExtractConfig(**scenes.data, **options), scenes.context)
    with pytest.raises(UsageError) as told:
        score(scenes, features=other.id, split="val", flip=True)
    assert said in str(told.value)
    data = f"--dataset {scenes.data['dataset']} --split val"
    views = "--geometry native --size 64 --filter bilinear --flip"
    assert f"unsupseg extract {data} --backbone tiny {views}" in str(told.value)


def test_codes_of_a_model_are_no_tokens_of_its_backbone(scenes):
    codes = extract(ExtractConfig(**HERE, **scenes.data, split="val", model=scenes.model.id), scenes.context)
    with pytest.raises(UsageError, match="they are codes of a model"):
        score(scenes, features=codes.id)


def test_what_only_a_backbone_reads_is_refused(scenes):
    for option in ({"batch_size": 4}, {"precision": "fp32"}):
        with pytest.raises(UsageError, match="tokens are read, no backbone runs"):
            score(scenes, features=scenes.features.id, **option)
    config = EvalConfig(**HERE, predictions="x", features=scenes.features.id)
    with pytest.raises(UsageError, match="label maps are scored"):
        evaluate(config, scenes.context)


def test_an_image_that_was_unreadable_is_told(scenes):
    manifest = score(scenes, features=scenes.features.id)
    (key,) = manifest.summary["skipped"]
    assert Path(key).stem == scenes.broken.stem
    assert any("unreadable images left out: 1 (" in warning for warning in manifest.warnings)
    assert manifest.summary["images"] == 3
