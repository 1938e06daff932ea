"""The run as a user meets it: it learns, resumes exactly, and stops on bad input."""

import copy
from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from pydantic import ValidationError

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.pretraining.collapse import warnings
from unsupseg_cli.pretraining.config import ARCHITECTURES, PretrainConfig, architecture
from unsupseg_cli.pretraining.encoder import build_encoder, tokens
from unsupseg_cli.pretraining.train import (
    Pretrainer,
    batch_indices,
    check_images,
    fabric_precision,
    learning_rate,
)
from unsupseg_cli.training.loop import fit

SMALL = {
    "arch": "vit_tiny_conv16", "size": 32, "final_size": 32, "local_size": 16, "batch": 8, "steps": 12,
    "head_hidden": 64, "head_dim": 32, "prototypes": 32, "bottleneck": 32, "points": 4, "precision": "fp32",
    "clusters": 8, "cluster_weight": 2.0, "device": "cpu",
}  # fmt: skip


def small(**changes) -> PretrainConfig:
    return PretrainConfig(**{**SMALL, **changes})


def textures(count: int, side: int = 40) -> torch.Tensor:
    """Images that differ in colour, direction and pitch of a wave."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(side).float()
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = torch.rand(count, 1, 1, generator=generator) * 3.14
    pitch = 0.3 + torch.rand(count, 1, 1, generator=generator)
    wave = torch.sin(pitch * (x * angle.cos() + y * angle.sin()))[:, None]
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    return ((0.5 * colour + 0.25 * (1 + wave)).clamp(0, 1) * 255).to(torch.uint8)


IMAGES, ASPECT = textures(16), torch.ones(16)


def train(config: PretrainConfig, steps: int, images=IMAGES, checkpoint=None, **hooks) -> Pretrainer:
    """Return a run that took the first steps of its schedule."""
    trainer = Pretrainer(config, images.numpy(), torch.ones(len(images)))
    for name, hook in hooks.items():
        setattr(trainer, name, hook)

    def first(numbers, done):
        yield from (number for number in numbers if number < steps)

    trainer.records = []
    fabric = Fabric(accelerator="cpu", devices=1, precision=fabric_precision(config))
    schedule = replace(trainer.schedule, log_every=1)
    fit(trainer, schedule, fabric, checkpoint=checkpoint, log=trainer.records.append, track=first)
    return trainer


class Memory:
    """A checkpoint that keeps what was saved last."""

    state = None

    def load(self):
        return self.state

    def save(self, state):
        self.state = copy.deepcopy(state)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("objective", ["contrastive", "dino"])
def test_training_makes_views_of_one_image_agree(objective):
    # the textures differ in colour, so colour is left alone
    looks = {"jitter": 0.1, "grayscale": 0.0, "blur": 0.0, "cluster_weight": 0.0}
    config = small(objective=objective, batch=16, steps=40, ema=0.95, learning_rate=5e-4, **looks)
    before = Pretrainer(config, IMAGES.numpy(), ASPECT).health()
    trainer = train(config, 40)
    losses, after = [record["loss"] for record in trainer.records], trainer.health()
    assert sum(losses[-3:]) < 0.85 * sum(losses[:3])
    assert after.agreement + after.patch_agreement > before.agreement + before.patch_agreement + 0.15
    assert after.spread > 0.2


@pytest.mark.parametrize("changes", [{}, {"objective": "dino", "centering": "mean", "local_crops": 1}])
def test_a_resumed_run_gives_the_same_weights(changes):
    config = small(**changes)
    whole, checkpoint = train(config, 4), Memory()
    train(config, 2, checkpoint=checkpoint)
    assert checkpoint.state["step"] == 2
    resumed = train(config, 4, checkpoint=checkpoint)
    assert same_weights(whole.teacher, resumed.teacher)
    assert same_weights(whole.loss, resumed.loss)


def test_the_seed_decides_everything():
    assert same_weights(train(small(), 2).encoder, train(small(), 2).encoder)
    assert not same_weights(train(small(seed=1), 2).encoder, train(small(), 2).encoder)


def sizes_and_counts(config, steps):
    """Return side and number of the global crops of each forward pass."""
    seen = []

    def begin(optimizer):
        trainer.student.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].shape))

    trainer = Pretrainer(config, IMAGES.numpy(), ASPECT)
    trainer.begin = begin
    schedule = replace(trainer.schedule, steps=steps)
    fit(trainer, schedule, Fabric(accelerator="cpu", devices=1))
    return [(shape[-1], shape[0]) for shape in seen]


def test_sizes_follow_the_schedule():
    seen = sizes_and_counts(small(final_size=64, final_from=0.5, steps=4), 4)
    assert [side for side, _ in seen] == [32, 32, 64, 64]


def test_prototypes_move_only_in_their_part_of_the_run():
    config, moments = small(steps=4, cluster_from=0.5), []

    def after_step(step, optimizer):
        # The first parameter is the prototypes.
        moments.append(float(optimizer.state_dict()["state"][0]["exp_avg"].abs().sum()))

    train(config, 3, after_step=after_step)
    assert [moment > 0 for moment in moments] == [False, False, True]


def test_accumulation_uses_every_image():
    assert [count for _, count in sizes_and_counts(small(accumulate=2), 1)] == [8, 8]


def test_nan_stops_the_run_and_keeps_the_last_checkpoint():
    checkpoint = Memory()
    good = train(small(), 2, checkpoint=checkpoint)
    with pytest.raises(UnsupsegError, match=r"became nan at step 2; lower the learning rate.*kept"):
        train(small(), 4, IMAGES.float() / 255 * float("nan"), checkpoint=checkpoint)
    assert checkpoint.state["step"] == 2
    for name, value in good.teacher.state_dict().items():
        assert torch.equal(checkpoint.state["task"]["teacher"][name], value)
    assert train(small(), 3, checkpoint=checkpoint).records[-1]["loss"] > 0  # and it can go on


def test_identical_images_are_reported_as_collapse():
    same = IMAGES[:1].expand(8, -1, -1, -1).contiguous()
    found = warnings(Pretrainer(small(), same.numpy(), torch.ones(8)).health())
    assert len(found) == 1
    assert "identical" in found[0]


def test_too_few_and_too_small_images():
    with pytest.raises(UsageError, match="There are 7 images, but one step needs 16"):
        check_images(torch.full((7,), 100), small(accumulate=2))
    assert check_images(torch.full((8,), 100), small()) == []
    (warning,) = check_images(torch.tensor([10, 31] + [100] * 6), small())
    assert warning.startswith("2 of 8 images are smaller than a crop of 32 pixels")


def test_batches_cover_an_epoch_once():
    epoch = torch.cat([batch_indices(23, 5, step, 0) for step in range(4)])
    assert len(epoch.unique()) == 20
    assert not torch.equal(batch_indices(23, 5, 0, 0), batch_indices(23, 5, 4, 0))


def test_learning_rate_rises_then_falls():
    config = small(learning_rate=1.0, final_learning_rate=0.1, warmup=0.1)
    assert learning_rate(config, 0.05) == pytest.approx(0.5)
    assert learning_rate(config, 0.1) == pytest.approx(1.0)
    assert learning_rate(config, 0.55) == pytest.approx(0.55)
    assert learning_rate(config, 1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gives_a_token_per_patch(name):
    arch = architecture(name)
    with torch.no_grad():
        cls, patches = tokens(build_encoder(arch, 32).eval(), torch.rand(1, 3, 64, 48))
    patch = arch["patch_size"]
    assert cls.shape == (1, arch["embed_dim"])
    assert patches.shape == (1, 64 // patch, 48 // patch, arch["embed_dim"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "vit_tiny_patch14"}, "did you mean"),
        ({"size": 40}, "multiple of the patch size 16"),
        ({"crop_scale": (0.9, 0.1)}, "crop_scale"),
        ({"global_weight": 0.0, "dense_weight": 0.0}, "nothing to learn"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises((ValidationError, UsageError), match=message):
        small(**changes)
