"""Recipes of published rows hold what the published code does, where the defaults do not."""

import pytest

from unsupseg_cli.metrics.protocols import get_protocol
from unsupseg_cli.pipeline.recipe import resolve
from unsupseg_cli.pipeline.recipe_file import bundled, load_recipe

PRIMAPS = [name for name in bundled() if name.startswith("primaps-")]
STEGO = [name for name in bundled() if name.startswith("stego-") and "primaps" not in name]
BOTH = [name for name in bundled() if name.startswith("stego-primaps-")]


def steps_of(name):
    return {step.id: step for step in resolve(load_recipe(name))}


def check_masks(options):
    assert (options.anchor, options.center, options.threshold) == ("signed", "none", 0.4)
    assert (options.coverage, options.median, options.gain, options.crf) == (0.95, 3, 10.0, True)


def check_em(step, resolution):
    options = step.options
    assert (options.epochs, options.batch, options.lr, options.resolution) == (50, 32, 5e-3, resolution)
    assert (options.ema_decay, options.ema_every, options.focal_gamma, options.alpha) == (0.98, 10, 2.0, 0)
    assert (step.config.tokens, options.augment, options.ema_count) == ("live", "normalised", "updates")


@pytest.mark.parametrize("name", PRIMAPS)
def test_primaps(name):
    steps = steps_of(name)
    check_masks(steps["pseudolabel"].options)
    check_em(steps["train"], 322 if "dinov2" in name else 320)
    start = steps["train"].options
    assert (start.init, start.init_batches, start.init_epochs) == ("pca", 93, 2)
    assert (steps["extract"].config.filter, steps["extract"].config.size) == ("bilinear", 320)
    assert {steps[one].config.protocol for one in ("eval", "eval-crf")} == {"primaps"}


@pytest.mark.parametrize("name", STEGO)
def test_stego(name):
    steps = steps_of(name)
    options = steps["stego"].options
    assert (options.steps, options.batch, options.lr, options.num_neighbors) == (5000, 16, 5e-4, 7)
    assert (options.restarts, options.refit) == (1, False)
    assert options.shifts != "auto"
    assert steps["extract"].config.filter == "nearest"
    assert {steps[one].config.protocol for one in ("eval", "eval-crf")} == {"stego"}


@pytest.mark.parametrize("name", BOTH)
def test_primaps_on_stego(name):
    """The masks are found in the backbone's tokens, EM is on the codes and starts from STEGO's probe."""
    steps = steps_of(name)
    masks, em = steps["pseudolabel"], steps["train-2"]
    assert masks.inputs["features"] == "tokens"
    assert "model" not in steps["tokens"].inputs
    assert (em.inputs["features"], em.inputs["pseudolabels"]) == ("codes", "pseudolabel")
    assert steps["codes"].inputs["model"] == "stego"
    fields = ("geometry", "size", "filter", "split")
    shown = [[getattr(steps[one].config, field) for field in fields] for one in ("codes", "tokens")]
    assert shown[0] == shown[1]
    check_masks(masks.options)
    check_em(em, 320)
    assert em.options.init == "model"
    assert (steps["stego"].options.restarts, steps["stego"].options.refit) == (1, False)


def test_protocols_resize_as_the_published_code():
    assert get_protocol("stego").filter == "nearest"
    assert get_protocol("primaps").filter == "tensor"
