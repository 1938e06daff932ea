import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unsupseg_cli import (
    Context,
    ExtractConfig,
    PseudolabelConfig,
    TrainConfig,
    extract,
    graph,
    pseudolabel,
    refine,
    train,
)
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.mask_writer import _write_table, warn_of_single_masks
from unsupseg_cli.contents.masks import LabelMaps, SoftMasks, read_masks
from unsupseg_cli.contents.network import live_source
from unsupseg_cli.contents.views import ViewImages
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.methods.primaps.config import PseudolabelOptions as Primaps
from unsupseg_cli.methods.primaps.config import TrainOptions as PrimapsTrain
from unsupseg_cli.methods.stego.config import TrainOptions as StegoTrain
from unsupseg_cli.stages.graph import GraphConfig
from unsupseg_cli.stages.refine import RefineConfig

CPU = torch.device("cpu")
HALVES = ((200, 60, 40), (30, 90, 210))


@pytest.fixture
def folder(tmp_path):
    """Six photos of two flat halves, of two sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        rng = np.random.default_rng(number)
        image = np.empty((48, 64 if number % 2 else 48, 3), np.uint8)
        edge = 20 + 3 * number
        image[:, :edge], image[:, edge:] = HALVES
        noisy = image + rng.normal(0, 4, image.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def features(folder, context):
    config = ExtractConfig(dataset=f"{folder}/", size=48, workers=0, device="cpu", precision="fp32")
    return extract(config, context)


def label(context, classes=2, keep="labels", **options):
    config = PseudolabelConfig(method="primaps", classes=classes, keep=keep, workers=1)
    return pseudolabel(config, context, options=Primaps(**options))


def table(artifact):
    return pq.read_table(artifact.path / "masks.parquet").to_pydict()


@pytest.mark.parametrize("position", [0.0, 0.5])
def test_views_are_rendered_as_they_were_extracted(folder, context, position):
    config = ExtractConfig(
        dataset=f"{folder}/", size=48, workers=0, device="cpu", precision="fp32", position=position
    )
    views = FeatureSet(extract(config, context))
    tokens = live_source(views, context, CPU, workers=1).tokens([0, 1, 5])
    for view, live in zip([0, 1, 5], tokens, strict=True):
        (stored,) = views.tokens([view])
        torch.testing.assert_close(live, stored, atol=0.02, rtol=0.01)  # stored in float16


def test_labels_have_the_size_of_the_view_with_a_crf_and_of_its_grid_without(features, context):
    views = FeatureSet(features)
    refined, plain = label(context), label(context, crf=False)
    for view, (height, width) in enumerate(ViewImages(views, context).sizes):
        assert LabelMaps(refined)[view].shape == (height, width)
        assert LabelMaps(plain)[view].shape == tuple(views.grids[view])
    for artifact in (refined, plain):
        rows = table(artifact)
        for view in range(6):
            labels = LabelMaps(artifact)[view]
            mine = [i for i, one in enumerate(rows["view"]) if one == view]
            assert [rows["id"][i] for i in mine] == list(range(len(mine)))
            assert [rows["area"][i] for i in mine] == [int((labels == i).sum()) for i in range(len(mine))]
        assert (artifact.path / "sheet.png").exists()


def test_soft_masks_refined_afterwards_are_the_refined_masks(features, context):
    """`pseudolabel` with its CRF, and `pseudolabel --keep scores` with `refine` behind it, agree."""
    at_once = label(context)
    soft = label(context, keep="scores", crf=False)
    later = refine(RefineConfig(pseudolabels=soft.id, workers=1), context)
    same = total = 0
    for view in range(6):
        one, two = LabelMaps(at_once)[view], LabelMaps(later)[view]
        same, total = same + int((one == two).sum()), total + one.size
    assert same > 0.97 * total
    grids = FeatureSet(features).grids
    assert SoftMasks(soft, grids)[3].shape[1:] == tuple(grids[3])
    assert later.manifest.config["method"] == "primaps"
    model = train(TrainConfig(device="cpu"), context, options=PrimapsTrain(epochs=1))
    assert model.input("pseudolabels").id == later.id


def test_hard_masks_are_refined_only_when_one_says_how_far_to_trust_them(features, context):
    hard = label(context, crf=False)
    with pytest.raises(UsageError, match=r"--keep scores.*--label-confidence"):
        refine(RefineConfig(pseudolabels=hard.id), context)
    trusted = refine(RefineConfig(pseudolabels=hard.id, label_confidence=0.9, workers=1), context)
    assert LabelMaps(trusted)[1].shape == (48, 64)


def test_a_method_without_soft_masks_says_so(features, context):
    with pytest.raises(UsageError, match="no soft masks"):
        pseudolabel(PseudolabelConfig(method="kmeans", classes=2, keep="scores"), context)


def test_images_that_changed_since_are_refused(features, folder, context):
    Image.new("RGB", (48, 48)).save(folder / "2.png")
    with pytest.raises(UnsupsegError, match=r"changed, added or removed.*extract"):
        label(context)
    assert (
        label(context, crf=False).manifest.summary["views"] == 6
    )  # needs no images, only lacks the pictures


def test_images_are_found_from_any_folder_and_after_a_move(folder, context, monkeypatch, tmp_path):
    config = ExtractConfig(dataset="photos/", size=48, workers=0, device="cpu", precision="fp32")
    monkeypatch.chdir(tmp_path)
    extract(config, context)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert label(context, gain=9.0).manifest.summary["views"] == 6
    folder.rename(tmp_path / "moved")
    with pytest.raises(UnsupsegError, match=r"moved.*extract.*--force"):
        label(context, gain=8.0)
    config = config.model_copy(update={"dataset": f"{tmp_path}/moved/"})
    extract(config, replace(context, force=True))
    assert label(context, gain=8.0).manifest.summary["views"] == 6


def test_a_view_without_a_mask_is_counted_and_listed(features, context):
    made = label(context, crf=False, max_masks=1, threshold=1.0)  # one cell a view, which the median removes
    assert made.manifest.summary["empty"] == [f"{number}.png" for number in range(6)]
    assert made.manifest.summary["masks"] == 0
    assert "no mask was found in 6 views (0.png" in made.manifest.warnings[0]
    with pytest.raises(UsageError, match="hold no mask"):
        train(TrainConfig(device="cpu"), context, options=PrimapsTrain(epochs=1))


def test_masks_of_other_features_are_refused(features, folder, context):
    masks = label(context, crf=False)
    other = extract(ExtractConfig(dataset=f"{folder}/", size=64, workers=0, device="cpu"), context)
    with pytest.raises(UsageError, match=f"{masks.id}.*{features.id}.*{other.id}"):
        train(TrainConfig(pseudolabels=masks.id, features=other.id, device="cpu"), context)


def test_finished_blocks_are_not_labelled_again(features, context, monkeypatch):
    from unsupseg_cli.methods.primaps import pseudolabel as module

    monkeypatch.setattr("unsupseg_cli.contents.mask_writer.views_per_block", lambda *given: 2)
    whole = label(context)
    digests = {name: output.sha256 for name, output in whole.manifest.outputs.items()}
    calls = []
    propose = module.propose

    def dies(tokens, config):
        calls.append(len(tokens))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return propose(tokens, config)

    monkeypatch.setattr(module, "propose", dies)
    again = Context(context.workspace, force=True)
    with pytest.raises(KeyboardInterrupt):
        label(again)
    made = label(again)
    assert len(calls) == 4  # the third block once more, the first two not
    assert {name: output.sha256 for name, output in made.manifest.outputs.items()} == digests


def test_live_tokens_train_and_are_only_for_methods_that_take_them(features, context):
    label(context)
    live = train(TrainConfig(tokens="live", device="cpu"), context, options=PrimapsTrain(epochs=2))
    stored = train(TrainConfig(device="cpu"), context, options=PrimapsTrain(epochs=2))
    assert live.manifest.key != stored.manifest.key
    first = [json.loads((one.path / "metrics.jsonl").read_text().splitlines()[0]) for one in (live, stored)]
    assert first[0]["loss"] != first[1]["loss"]  # the augmentation is seen
    with pytest.raises(UsageError, match="stored tokens only"):
        train(TrainConfig(method="kmeans", tokens="live", device="cpu"), context)


def test_stego_learns_the_same_from_stored_and_from_live_tokens(features, context):
    graph(GraphConfig(device="cpu", neighbors=3), context)
    losses = []
    for tokens in ("stored", "live"):
        config = TrainConfig(method="stego", classes=2, tokens=tokens, device="cpu")
        model = train(config, context, options=StegoTrain(steps=3, batch=4, restarts=1, codes=8))
        losses.append(
            [json.loads(line)["loss"] for line in (model.path / "metrics.jsonl").read_text().splitlines()]
        )
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02, atol=0.01)


def test_prototypes_may_start_from_the_model_under_the_features(features, folder, context):
    graph(GraphConfig(device="cpu", neighbors=3), context)
    config = TrainConfig(method="stego", classes=2, device="cpu")
    base = train(config, context, options=StegoTrain(steps=2, batch=4, restarts=1, codes=8))
    given = {"dataset": f"{folder}/", "size": 48, "workers": 0, "device": "cpu"}
    extract(ExtractConfig(**given, model=base.id), context)
    label(context, crf=False)
    options = {"init": "model", "epochs": 1, "lr": 1e-12}
    model = train(TrainConfig(device="cpu"), context, options=PrimapsTrain(**options))
    one, two = (load_file(artifact.path / "model.safetensors") for artifact in (base, model))
    cosine = torch.cosine_similarity(one["class_head.weight"], two["class_head.weight"])
    torch.testing.assert_close(cosine, torch.ones(2))
    with pytest.raises(UsageError, match=r"model of 3 classes.*found one of 2 classes"):
        train(TrainConfig(classes=3, device="cpu"), context, options=PrimapsTrain(**options))


def test_more_classes_than_masks_are_told(features, context):
    masks = label(context, crf=False)
    count = masks.manifest.summary["masks"]
    model = train(TrainConfig(classes=count + 1, device="cpu"), context, options=PrimapsTrain(epochs=1))
    assert any(f"only {count} masks for {count + 1} classes" in text for text in model.manifest.warnings)
    assert len(read_masks(masks, context).labels) == 6


@pytest.mark.parametrize(
    ("per_view", "covered", "warned"), [(1.0, 0.99, True), (1.0, 0.3, False), (4.0, 1.0, False)]
)
def test_a_single_mask_that_covers_every_view_is_warned_of(per_view, covered, warned, tmp_path):
    """One object before a background is no fault."""
    draft = Draft(tmp_path / "draft")
    warn_of_single_masks(draft, {"views": 5, "masks_per_view": per_view, "covered": covered})
    assert bool(draft.warnings) == warned


@pytest.mark.parametrize("rows", [0, 1000, 2**20, 2**21 + 5])
def test_a_table_that_is_written_in_parts_has_the_bytes_of_one_that_is_written_whole(tmp_path, rows):
    rng = np.random.default_rng(0)
    whole = pa.table(
        {"view": np.arange(rows) // 7, "score": rng.random(rows), "class": rng.integers(9, size=rows)}
    )
    pq.write_table(whole, tmp_path / "whole.parquet")
    parts = (whole.slice(start, 300_000) for start in range(0, rows, 300_000))
    _write_table(tmp_path / "parts.parquet", whole.schema, parts)
    assert (tmp_path / "parts.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
