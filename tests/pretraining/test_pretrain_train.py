"""The run as a user meets it: it learns, resumes exactly, and stops on bad input."""

import copy

import pytest
import torch
from pydantic import ValidationError

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.pretraining.collapse import warnings
from unsupseg_cli.pretraining.config import ARCHITECTURES, PretrainConfig, architecture
from unsupseg_cli.pretraining.encoder import build_encoder, tokens
from unsupseg_cli.pretraining.train import Pretrainer, batch_indices, check_images, learning_rate

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


def train(config: PretrainConfig, steps: int, trainer: Pretrainer | None = None) -> Pretrainer:
    trainer = trainer or Pretrainer(config)
    while trainer.step_number < steps:
        take = config.batch * config.accumulate
        index = batch_indices(len(IMAGES), take, trainer.step_number, config.seed)
        trainer.step(IMAGES[index], ASPECT[index])
    return trainer


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("objective", ["contrastive", "dino"])
def test_training_makes_views_of_one_image_agree(objective):
    # the textures differ in colour, so colour is left alone
    looks = {"jitter": 0.1, "grayscale": 0.0, "blur": 0.0, "cluster_weight": 0.0}
    config = small(objective=objective, batch=16, steps=40, ema=0.95, learning_rate=5e-4, **looks)
    trainer = Pretrainer(config)
    before = trainer.probe(IMAGES, ASPECT)
    losses = [trainer.step(IMAGES, ASPECT)["loss"] for _ in range(40)]
    after = trainer.probe(IMAGES, ASPECT)
    assert sum(losses[-3:]) < 0.85 * sum(losses[:3])
    assert after.agreement + after.patch_agreement > before.agreement + before.patch_agreement + 0.15
    assert after.spread > 0.2


@pytest.mark.parametrize("changes", [{}, {"objective": "dino", "centering": "mean", "local_crops": 1}])
def test_a_resumed_run_gives_the_same_weights(changes):
    config = small(**changes)
    whole = train(config, 4)
    state = copy.deepcopy(train(config, 2).state_dict())
    resumed = Pretrainer(config)
    resumed.load_state_dict(state)
    train(config, 4, resumed)
    assert same_weights(whole.teacher, resumed.teacher)
    assert same_weights(whole.loss, resumed.loss)


def test_the_seed_decides_everything():
    assert same_weights(train(small(), 2).encoder, train(small(), 2).encoder)
    assert not same_weights(train(small(seed=1), 2).encoder, train(small(), 2).encoder)


def test_sizes_follow_the_schedule():
    config = small(final_size=64, final_from=0.5, steps=4)
    trainer, seen = Pretrainer(config), []
    trainer.student.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].shape[-1]))
    train(config, 4, trainer)
    assert seen == [32, 32, 64, 64]


def test_prototypes_move_only_in_their_part_of_the_run():
    config = small(steps=4, cluster_from=0.5)
    trainer = train(config, 2)
    trainer.step(IMAGES[:8], ASPECT[:8])
    gradient = trainer.state_dict()["optimizer"]["state"][0]["exp_avg"]
    assert gradient.abs().sum() > 0  # the first parameter is the prototypes
    early = train(config, 2).state_dict()["optimizer"]["state"][0]["exp_avg"]
    assert early.abs().sum() == 0


def test_accumulation_uses_every_image():
    config = small(accumulate=2)
    trainer, seen = Pretrainer(config), []
    trainer.student.register_forward_pre_hook(lambda _, args: seen.append(len(args[0][0])))
    trainer.step(IMAGES, ASPECT)
    assert seen == [8, 8]
    assert trainer.step_number == 1


def test_nan_stops_the_run_and_keeps_the_last_good_weights():
    trainer = train(small(), 2)
    good = copy.deepcopy(trainer.state_dict())
    broken = IMAGES[:8].float() / 255
    broken[0] = float("nan")
    with pytest.raises(UnsupsegError, match=r"became nan at step 2.*kept"):
        trainer.step(broken, ASPECT[:8])
    now = trainer.state_dict()
    assert now["step"] == 2
    for part in ("student", "teacher"):
        assert all(torch.equal(now[part][name], value) for name, value in good[part].items())
    assert trainer.step(IMAGES[:8], ASPECT[:8])["loss"] > 0  # and it can go on


def test_identical_images_are_reported_as_collapse():
    same = IMAGES[:1].expand(8, -1, -1, -1).contiguous()
    found = warnings(Pretrainer(small()).probe(same, torch.ones(8)))
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
