import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unsupseg_cli import Context, pretrain
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.pretraining.config import PretrainConfig
from unsupseg_cli.pretraining.patch_probe import probe_patches, some_labelled

SMALL = {
    "steps": 2,
    "batch": 2,
    "size": 32,
    "final_size": 32,
    "points": 4,
    "device": "cpu",
    "head_hidden": 16,
}
COLORS = np.array([[30, 120, 220], [60, 160, 60], [220, 60, 40]], np.uint8)


@pytest.fixture
def labelled(tmp_path):
    """Three flat stripes an image, whose classes are their colours, in the layout of CamVid."""
    root = tmp_path / "camvid"
    for split in ("train", "val"):
        for number in range(3):
            label = np.roll(np.repeat(np.arange(3), 16)[None].repeat(48, 0), 8 * number, 1).astype(np.uint8)
            for kind, pixels in (("images", COLORS[label]), ("labels", label)):
                path = root / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


def colours(image):
    return torch.nn.functional.avg_pool2d(
        torch.from_numpy(image.copy()).movedim(-1, 0)[None].float() / 255, 8
    )[0].movedim(0, -1)


def test_tokens_that_are_the_colours_of_the_classes_give_full_marks(labelled):
    train, val = (open_dataset("camvid", root=labelled, split=split) for split in ("train", "val"))
    given = {"size": None, "patch": 8, "seeds": (0, 1), "steps": 200}
    found = probe_patches(colours, some_labelled(train), some_labelled(val), train.space, **given)
    assert found.linear.miou > 0.95
    assert len(found.kmeans) == 2
    assert found.kmeans[0].accuracy > 0.6  # eleven clusters on three colours: most of them are split
    blind = probe_patches(
        lambda image: torch.randn(image.shape[0] // 8, image.shape[1] // 8, 3, generator=torch.Generator()),
        some_labelled(train),
        some_labelled(val),
        train.space,
        **given,
    )
    assert blind.linear.miou < 0.6
    assert len(some_labelled(train, 2)) == 2


def test_images_without_labels_cannot_be_probed(labelled):
    with pytest.raises(UsageError, match="has a label to probe"):
        some_labelled(open_dataset(f"{labelled}/images/train/"))


def test_a_probe_is_recorded_and_marks_the_backbone_as_having_seen_labels(labelled, tmp_path):
    context = Context(Workspace(tmp_path / "work"))
    plain = pretrain(PretrainConfig(**SMALL, images=[labelled / "images"]), context)
    config = PretrainConfig(**SMALL, probe="camvid", probe_root=str(labelled), images=[labelled / "images"])
    probed = pretrain(config, context)
    assert not plain.manifest.used_labels
    assert probed.manifest.used_labels
    first = json.loads((probed.path / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 <= first["probe_kmeans"] <= 100
    assert 0 <= probed.manifest.summary["probe_linear"] <= 100
    one, two = (artifact.manifest.outputs["backbone.safetensors"].sha256 for artifact in (plain, probed))
    assert one == two  # looking at labels changes nothing


@pytest.mark.parametrize(
    ("changes", "apart"),
    [
        # Weights are stored in half precision: to a rounding of it.
        ({"cluster_weight": 2.0, "cluster_from": 0.0}, 2e-5),
        ({"arch": "vit_tiny_patch16", "objective": "dino", "accumulate": 2}, 2e-5),
        ({"objective": "dino", "centering": "mean", "local_crops": 1, "local_size": 16}, 2e-5),
        # Crops of the first step overlap in one process, of the second nowhere: what stands before a batch norm then
        # has no gradient but roundings, of which AdamW makes steps.
        ({"crop_scale": (0.01, 0.02), "cluster_weight": 1.0}, 3e-4),
    ],
)
def test_two_processes_train_the_backbone_of_one(labelled, tmp_path, changes, apart):
    many = tmp_path / "many"
    for number in range(8):
        colours = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        many.mkdir(exist_ok=True)
        Image.fromarray(colours).resize((48, 48)).save(many / f"{number}.png")
    # Three images a step, of which the processes take two and one; as a GPU each, but on the CPU.
    settings = {**SMALL, "batch": 3, "precision": "fp32", "images": [many], **changes}
    weights, ids = [], []
    for devices in (1, 2):
        context = Context(Workspace(tmp_path / f"work-{devices}"))
        made = pretrain(PretrainConfig(**settings, devices=devices), context)
        assert made.manifest.summary["pairs"] == 3 * settings.get("accumulate", 1) * settings["steps"]
        weights.append(load_file(made.path / "backbone.safetensors"))
        ids.append(made.id)
    assert ids[0] == ids[1]
    alone, together = weights
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name].float(), value.float(), rtol=1e-3, atol=apart)


def test_a_failure_in_one_process_ends_all_and_is_named(labelled, tmp_path):
    context = Context(Workspace(tmp_path / "work"))
    config = PretrainConfig(
        **SMALL, devices=2, learning_rate=1e30, precision="fp32", images=[labelled / "images"]
    )
    with pytest.raises(UnsupsegError, match="became"):
        pretrain(config.model_copy(update={"steps": 5}), context)
    assert not list(context.workspace.artifacts("backbone"))


def test_a_run_may_start_from_a_backbone(labelled, tmp_path):
    context = Context(Workspace(tmp_path / "work"))
    images = [labelled / "images"]
    first = pretrain(PretrainConfig(**SMALL, images=images), context)
    gentle = {**SMALL, "learning_rate": 1e-9, "final_learning_rate": 1e-9}
    second = pretrain(PretrainConfig(**gentle, start=first.id, images=images), context)
    before, after = (load_file(one.path / "backbone.safetensors") for one in (first, second))
    for name, weights in before.items():
        if "running" not in name and "num_batches" not in name:  # statistics of the stem move with each batch
            assert torch.allclose(weights.float(), after[name].float(), atol=1e-3), name
    plain = pretrain(PretrainConfig(**gentle, images=images), context)
    assert plain.id != second.id
    with pytest.raises(UsageError, match="another architecture"):
        pretrain(PretrainConfig(**gentle, arch="vit_tiny_patch16", start="tiny", images=images), context)
