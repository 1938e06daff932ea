"""What the contract tests share: small pictures, and every stage, labeller and trainer that is registered."""

import json
import pkgutil
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

from unsupseg_cli import Context, ExtractConfig, Workspace, extract, graph, stages
from unsupseg_cli.methods.registry import usable_methods
from unsupseg_cli.pipeline.table import entries, get_stage
from unsupseg_cli.stages.graph import GraphConfig


def pytest_generate_tests(metafunc):
    """Give a test with the argument ``part`` each labeller and trainer, with ``stage`` each stage of the table.

    One with ``any_stage`` gets those without a command of their own too.
    """
    if "part" in metafunc.fixturenames:
        parts = [
            ("train" if part is method.trainer else "pseudolabel", method, part)
            for method in usable_methods()
            for part in method.parts
        ]
        names = [f"{command}-{method.name}-{part.name}".rstrip("-") for command, method, part in parts]
        metafunc.parametrize("part", parts, ids=names)
    if "stage" in metafunc.fixturenames:
        metafunc.parametrize("stage", [get_stage(name) for name in entries()], ids=list(entries()))
    if "any_stage" in metafunc.fixturenames:
        files = [module.name for module in pkgutil.iter_modules(stages.__path__)]
        modules = [import_module(f"{stages.__name__}.{name}") for name in files]
        metafunc.parametrize(
            "any_stage",
            [module.STAGE for module in modules if hasattr(module, "STAGE")],
            ids=lambda stage: stage.name,
        )


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of six labelled pictures of coloured halves, to be read only."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 6), ("val", 2)):
        for number in range(count):
            rng = np.random.default_rng(number)
            label = np.zeros((32, 48), np.uint8)
            label[16:], label[:, : 8 + 4 * number] = 1, 2
            colors = np.array([[40, 90, 220], [60, 160, 60], [220, 60, 40]])[label]
            image = (colors + rng.normal(0, 12, colors.shape)).clip(0, 255).astype(np.uint8)
            for kind, pixels in (("images", image), ("labels", label)):
                path = root / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (root / "classes.json").write_text(json.dumps({"classes": ["sky", "grass", "box"], "void": [255]}))
    return root


@pytest.fixture(scope="session")
def world(pictures, tmp_path_factory):
    """A workspace with features (all arrays of a ViT), their graph and regions; tests add to it."""
    context = Context(Workspace(tmp_path_factory.mktemp("world")))
    extract(
        ExtractConfig(
            dataset=f"{pictures}/",
            split="train",
            size=32,
            backbone="untrained",
            workers=0,
            device="cpu",
            keep=("patch", "cls", "pooled", "attention", "query", "key", "cls_query"),
        ),
        context,
    )
    graph(GraphConfig(neighbors=3, device="cpu"), context)
    for layout, size, kept in (("pyramid", 32, ("cls", "patch")), ("anchors", 16, ("cls",))):
        extract(
            ExtractConfig(
                dataset=f"{pictures}/",
                split="train",
                size=size,
                backbone="untrained",
                regions=layout,
                keep=kept,
                workers=0,
                device="cpu",
            ),
            context,
        )
    return context
