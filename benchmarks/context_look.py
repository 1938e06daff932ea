"""What context-aware clustering makes of images: guidance level by level, embeddings as colours, classes.

    python benchmarks/context_look.py WORKSPACE PSEUDOLABELS MODEL OUT.png [--images 4]

A row for each image: what patches say, then the holistic clusters of each level, then the guidance (each a mean of the
classes' colours by probability); the first three principal components of the embeddings of the images; the classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli import Context, Workspace
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.method_inputs import open_inputs
from unsupseg_cli.contents.model import open_model
from unsupseg_cli.contents.views import ViewImages
from unsupseg_cli.methods.context.config import PseudolabelOptions
from unsupseg_cli.methods.context.pseudolabel import ContextLabeller
from unsupseg_cli.models.network_model import NetworkModel
from unsupseg_cli.report.palette import class_colors
from unsupseg_cli.report.sheet import grid


def colours_of(probabilities: Tensor) -> NDArray[np.uint8]:
    """Return the mean of the classes' colours, (h, w, 3), of probabilities (K, h, w)."""
    colours = torch.from_numpy(class_colors(len(probabilities))).float()
    return torch.einsum("khw,kc->hwc", probabilities.float(), colours).byte().numpy()


def components(maps: list[Tensor]) -> list[NDArray[np.uint8]]:
    """Return maps (C, h, w) as colours (h, w, 3): their first three principal components."""
    flat = torch.cat([one.flatten(1).T for one in maps])
    mean = flat.mean(0)
    directions = torch.linalg.eigh((flat - mean).T @ (flat - mean)).eigenvectors.flip(1)[:, :3]
    low, high = torch.quantile(
        ((flat - mean) @ directions)[:: max(1, len(flat) // 100_000)], torch.tensor([0.02, 0.98]), dim=0
    )
    shown = [((one.movedim(0, -1) - mean) @ directions - low) / (high - low) for one in maps]
    return [(255 * one.clamp(0, 1)).byte().numpy() for one in shown]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("pseudolabels")
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    context, device = Context(Workspace(options.workspace)), torch.device("cpu")
    labels = context.workspace.get(options.pseudolabels, "pseudolabels")
    artifacts = {}
    for role in ("features", "regions"):
        used = labels.input(role)
        assert used is not None
        artifacts[role] = context.workspace.get(used.id, role)
    config = labels.manifest.config
    part_options = PseudolabelOptions(**config["options"])
    inputs = open_inputs(
        artifacts, part_options.needs(), context, device, classes=config["classes"], seed=config["seed"]
    )
    labeller = ContextLabeller(part_options, inputs)
    labeller.fit()
    model = open_model(context.workspace.get(options.model, "model"), context, device).segmenter
    assert isinstance(model, NetworkModel)
    features = FeatureSet(artifacts["features"])
    views = [number * len(features) // options.images for number in range(options.images)]
    rows, embeddings, classes = [], [], []
    for view, image in zip(views, ViewImages(features, context)(views), strict=True):
        guidance = labeller.guidance(view)
        priors = [labeller._prior(level, view, tuple(guidance.shape[1:])) for level in labeller.levels]
        maps = [labeller._patches(view).softmax(0), *priors, guidance]
        rows.append([image, *map(colours_of, maps)])
        embeddings.append(
            model.network.embed(model._arrays(torch.from_numpy(image.copy())[None], (0, 0, 1, 1)))[0]
        )
        found = model.labels(model.score(image[None])[0], *image.shape[:2])
        classes.append(class_colors(model.outputs)[found])
    for row, embedding, found in zip(rows, components(embeddings), classes, strict=True):
        row += [embedding, found]
    levels = [f"level {level}" for level in range(len(labeller.levels))]
    headings = ["image", "patches", *levels, "guidance", "embeddings", "classes"]
    grid(rows, headings, cell=240).save(options.out)


if __name__ == "__main__":
    main()
