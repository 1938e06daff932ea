"""Every stage: known everywhere by one file, documented, and with a key that holds its result options alone."""

import re
import shutil
from importlib import resources
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

import unsupseg_cli
from unsupseg_cli import (
    ClassesConfig,
    EvalConfig,
    ExtractConfig,
    ImportMasksConfig,
    PredictConfig,
    PretrainConfig,
    PseudolabelConfig,
    RefineConfig,
    TrainConfig,
    predict,
    pseudolabel,
    train,
)
from unsupseg_cli.cli.main import app, commands
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.options import RegionKind
from unsupseg_cli.methods.kmeans.config import TrainOptions
from unsupseg_cli.methods.registry import BUNDLED, get_method
from unsupseg_cli.pipeline.stage import Stage, settle
from unsupseg_cli.pipeline.table import entries, get_stage
from unsupseg_cli.stages.scan import ScanConfig

from fixtures.calls import run_calls  # isort: skip
from other_values import other_values  # isort: skip

SHORT = TrainOptions(steps=3, restarts=1, batch=2)

PACKAGE = Path(str(resources.files("unsupseg_cli")))
NEW_STAGE = '''"""count: Predictions -> how many pixels each class has."""

from __future__ import annotations

import json

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.ports import Port
from unsupseg_cli.pipeline.stage import Stage


class CountConfig(Config):
    """Count pixels."""

    predictions: str | None = execution(None, "Predictions artifact; default: the last one.")
    least: int = setting(1, "Classes with fewer pixels are left out.", ge=0)


def identify(call):
    m = call.input("predictions").manifest
    return Identity(
        kind="counts",
        stage="count",
        stage_version=1,
        slug="counts",
        config=call.config.result(),
        inputs=call.described(),
        data=m.data,
    )


def work(call, draft):
    import numpy as np

    from unsupseg_cli.contents.label_maps import read_ids

    predictions = call.input("predictions")
    summary = predictions.manifest.summary
    counts = np.zeros(summary["classes"], int)
    for key in summary["keys"]:
        counts += np.bincount(read_ids(predictions.path, key).ravel(), minlength=len(counts))
    counts = {str(index): int(n) for index, n in enumerate(counts) if n >= call.config.least}
    (draft.folder / "counts.json").write_text(json.dumps(counts))
    return {"counts": counts}


STAGE = Stage(
    name="count",
    config=CountConfig,
    makes="counts",
    version=1,
    identify=identify,
    work=work,
    ports=(Port("predictions", "predictions"),),
)
'''
RECIPE = """
name = "counted"
description = "a chain that ends in a stage of its own"

[[stage]]
command = "extract"
dataset = "{pictures}/"
split = "train"
backbone = "untrained"
size = 32
workers = 0

[[stage]]
command = "pseudolabel"
classes = 3

[[stage]]
command = "train"
set = {{ steps = 3, restarts = 1 }}

[[stage]]
command = "predict"
split = "val"
workers = 0

[[stage]]
command = "count"
least = 2
"""


@pytest.fixture
def house(tmp_path):
    """A copy of the package to change, and a function that runs calls of its command, one after the other."""
    copy = tmp_path / "house" / "unsupseg_cli"
    shutil.copytree(PACKAGE, copy)  # with its byte code, which nothing has to be compiled for
    (tmp_path / "here").mkdir()
    return copy, lambda *calls: run_calls(calls, tmp_path / "here", copy.parent)


def test_a_stage_is_a_command_a_python_function_and_a_step_of_recipes(stage):
    assert isinstance(stage, Stage)
    assert stage.name in commands()
    assert getattr(unsupseg_cli, entries()[stage.name].module) is stage
    assert getattr(unsupseg_cli, stage.config.__name__) is stage.config
    assert stage.name in CliRunner().invoke(app, ["--help"]).output
    assert get_stage(stage.name) is stage


def test_the_help_of_a_stage_tells_every_option(stage):
    for name, field in stage.config.model_fields.items():
        assert field.description, name
    if f".cli.{stage.name}" in commands()[stage.name][0]:
        return  # a command written by hand
    shown = CliRunner().invoke(app, [stage.name, "--help"], env={"COLUMNS": "300"}).output
    for name in stage.config.model_fields:
        if not stage.config.note(name, "argument"):
            assert f"--{name.replace('_', '-')}" in shown


def test_every_port_has_an_option_of_its_own(any_stage):
    assert any_stage.roles.keys() <= any_stage.config.model_fields.keys()
    assert any_stage.roles.keys() <= any_stage.config.execution_fields()


SPECIAL = {
    "address": ["head:6379"],
    "backbone": ["tiny"],
    "keep": [("patch",), "scores"],
    "protocol": ["stego"],
    "bands": [(3, 2, 1)],
    "stretch": ["2,98"],
    "only": ["class 1"],
    "size": [16, 24],
    "tile": [64],
    "start": ["tiny"],
    "probe": ["camvid", "scenes"],
    "arch": ["vit_tiny_conv16"],
    "local_size": [40],
    "final_size": [40],
    "probe_root": ["camvid"],
    "images_file": ["images.json"],
    "background": [(0, 1)],
    "range": ["2-2"],
}
"""Other values of options whose type does not tell any."""


@pytest.fixture(scope="module")
def chain(world, pictures):
    """A workspace with an artifact for every port, and the configuration of a call of each stage."""
    labels = pseudolabel(PseudolabelConfig(classes=3, keep="labels", sheet=0, workers=0), world)
    model = train(TrainConfig(pseudolabels=labels.id, device="cpu"), world, options=SHORT)
    data = {"dataset": f"{pictures}/", "workers": 0, "device": "cpu"}
    predictions = predict(PredictConfig(model=model.id, split="val", keep="scores", **data), world)
    configs = {
        "extract": ExtractConfig(split="train", size=32, backbone="untrained", **data),
        "predict": PredictConfig(model=model.id, split="val", **data),
        "eval": EvalConfig(model=model.id, split="val", **data),
        "refine": RefineConfig(predictions=predictions.id),
        "pretrain": PretrainConfig(images=[pictures / "images"], size=32, final_size=32),
        "classes": ClassesConfig(model=model.id, merge=(("0", "1"),)),
        "scan": ScanConfig(range="2-3", device="cpu"),
        "import-masks": ImportMasksConfig(
            masks_from=pictures / "labels" / "val", dataset=f"{pictures}/", split="train"
        ),
    }
    return world, configs


def test_the_key_holds_the_result_options_and_no_other(any_stage, chain):
    context, configs = chain
    if any_stage.uses:
        return  # see the contract of the parts of methods
    require_key_of_result_options(any_stage, configs.get(any_stage.name) or any_stage.config(), context)


@pytest.mark.parametrize("kind", get_args(RegionKind))
def test_the_key_of_regions_holds_the_result_options_and_no_other(chain, kind):
    context, configs = chain
    config = configs["extract"].model_copy(update={"regions": kind, "keep": ("cls", "patch")})
    require_key_of_result_options(get_stage("extract"), config, context, refused=("position",))


def require_key_of_result_options(stage, config, context, refused=()):
    def key(**changes):
        other = type(config)(**{**config.model_dump(exclude_unset=True), **changes})
        return stage.identify(settle(stage, other, context)).key

    whole = key()
    for name in type(config).model_fields.keys() - stage.roles.keys():
        value = getattr(config, name)
        candidates = [*SPECIAL.get(name, []), *other_values(type(config), name, value)]
        if name in config.unread():
            assert "refused" in {key_of(key, name, candidate) for candidate in candidates}, name
        elif name in ("device", "workers", "batch_size", "sheet", "devices", "store", "strict"):
            other = {"device": "cpu", "store": "hdf5", "devices": 2}.get(name, 1)
            assert (key(**{name: other}) == whole) == (name in type(config).execution_fields()), name
        elif name in refused:
            assert {key_of(key, name, candidate) for candidate in candidates} == {None}, name
        elif name not in type(config).execution_fields():
            assert {key_of(key, name, candidate) for candidate in candidates} - {None, whole}, name


def key_of(key, name, value):
    """Return the key with another value, how it is refused where it has no effect, or None where it does not fit."""
    try:
        return key(**{name: value})
    except UsageError as error:
        return "refused" if "no effect" in str(error) else None
    except ValueError:
        return None


def test_a_new_stage_is_one_file(house, pictures, tmp_path):
    copy, run = house
    (copy / "stages" / "count.py").write_text(NEW_STAGE)
    recipe = tmp_path / "counted.toml"
    recipe.write_text(RECIPE.format(pictures=pictures))
    listed, own, dry, made, again, other, kinds, whole = run(
        ["--help"],
        ["count", "--help"],
        ["run", recipe, "--dry-run"],
        ["run", recipe, "--explain"],
        ["count", "--least", 2],
        ["count", "--least", 5],
        ["list"],
        ["verify"],
    )
    assert "how many pixels each class has" in listed[1]
    assert "--least" in own[1]
    assert dry[1].count("would run") == 5
    assert "count.least = 2" in made[2]
    assert "count.predictions = stage predict" in made[2]
    assert Path(made[1]).parent.name == "counts"
    assert again[1] == made[1]
    assert "reused" in again[2]
    assert other[1] != made[1]
    assert "counts" in kinds[1]
    assert whole[0] == 0
    settings = tmp_path / "here" / "unsupseg.toml"
    settings.write_text("[count]\nleast = 2\n")
    ((code, path, _),) = run(["count"])
    assert (code, Path(path).name) == (0, Path(made[1]).name)
    settings.write_text("[count]\nlest = 2\n")
    ((code, _, said),) = run(["count"])
    assert code == 2
    assert "did you mean 'least'" in said


SMALL = {
    "context": ("steps=2",),
    "kmeans": ("steps=3", "restarts=1"),
    "maskdistill": ("epochs=1",),
    "primaps": ("epochs=1",),
    "stego": ("steps=3", "restarts=1"),
    "transfgu": ("cycles=1", "cycle_steps=2"),
}


@pytest.mark.parametrize("method", BUNDLED)
def test_no_method_knows_another(method):
    folder = Path(unsupseg_cli.__file__).parent / "methods" / method
    source = "".join(path.read_text() for path in folder.rglob("*.py"))
    assert set(re.findall(r"unsupseg_cli\.methods\.(\w+)", source)) & BUNDLED.keys() == {method}


@pytest.mark.parametrize("gone", BUNDLED)
def test_without_a_method_the_others_work(gone, house, pictures):
    copy, run = house
    shutil.rmtree(copy / "methods" / gone)
    registry = copy / "methods" / "registry.py"
    lines = registry.read_text().splitlines(keepends=True)
    left = [line for line in lines if f'"unsupseg_cli.methods.{gone}"' not in line]
    assert len(left) == len(lines) - 1  # one line is all that names a method
    registry.write_text("".join(left))
    source = ("--dataset", f"{pictures}/", "--split", "train", "--size", 32, "--backbone", "untrained")
    crops = ["extract", *source, "--workers", 0, "--regions"]
    kept = ("--workers", 0, "--keep", "patch,cls,pooled,key,cls_query")
    calls = [["extract", *source, *kept], ["graph", "--neighbors", 3], ["methods", "list"]]
    ring = sorted(BUNDLED)
    method = ring[(ring.index(gone) + 1) % len(ring)]  # so that each one works without another
    labelling = ["pseudolabel", "--method", method]
    if method == "maskdistill":
        calls += [[*labelling, "--part", "masks"], [*labelling, "--part", "clusters", "--classes", 3]]
    elif get_method(method).labellers:
        regions = (
            ["pyramid", "--keep", "cls,patch"]
            if method == "context"
            else ["anchors", "--foreground-share", 0]
        )
        calls += [[*crops, *regions], [*labelling, "--classes", 3]]
    options = [text for value in SMALL.get(method, ()) for text in ("--set", value)]
    calls.append(["train", "--method", method, "--classes", 3, *options])
    calls.append(["predict", pictures / "images" / "val", "--workers", 0])
    results = run(*calls, ["pseudolabel", "--method", gone, "--classes", 3])
    for call, (code, _, said) in zip(calls, results, strict=False):
        assert code == 0, (call, said)
    assert gone not in results[2][1]
    assert results[-1][0] == 2
    assert f"Unknown method '{gone}'" in results[-1][2]
