"""K-means on tokens that were changed beforehand: less a mean, principal components, whitened, smoothed, scored on val.

    python benchmarks/conditions.py WORKSPACE FEATURES VAL_FEATURES CLASSES [--seeds 0 1]

The features are patch tokens of whole images, those of VAL_FEATURES with labels. No CRF. What a row changes is fitted
on FEATURES; the mean of an image is its own.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli import Context, Workspace
from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.images import reopen
from unsupseg_cli.data.images import image_size
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.training.tokens import sample_tokens

Change = Callable[[Tensor], Tensor]
"""Tokens (h, w, C) of an image -> those that are clustered."""
_SAMPLE = 40_000


def unit(tokens: Tensor) -> Tensor:
    return F.normalize(tokens, dim=-1)


def changes(sample: Tensor) -> dict[str, Change]:
    """Return what is tried, by name."""
    mean = unit(sample).mean(0)
    variance, axes = torch.linalg.eigh(torch.cov((unit(sample) - mean).T.double()))
    variance, axes = variance.flip(0).float().clamp_min(1e-8), axes.flip(1).float()

    def components(count: int, power: float) -> Change:
        scaled = axes[:, :count] * variance[:count] ** (-power / 2)
        return lambda tokens: (unit(tokens) - mean) @ scaled

    return {
        "as they are": lambda tokens: tokens,
        "less the collection's mean": lambda tokens: unit(tokens) - mean,
        "less the image's mean": lambda tokens: unit(tokens) - unit(tokens).mean((0, 1)),
        "32 principal components": components(32, 0),
        "64 components, half whitened": components(64, 0.5),
        "64 components, whitened": components(64, 1),
        "mean of the 3 x 3 cells around": blurred,
    }


def blurred(tokens: Tensor) -> Tensor:
    maps = unit(tokens).movedim(-1, 0)[None]
    return F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)[0].movedim(0, -1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("features")
    parser.add_argument("val_features")
    parser.add_argument("classes", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    context = Context(Workspace(arguments.workspace))
    train, val = (
        FeatureSet(context.workspace.get(name, "features"))
        for name in (arguments.features, arguments.val_features)
    )
    assert val.artifact.manifest.data is not None
    dataset = reopen(val.artifact.manifest.data)
    assert dataset.space is not None
    items = {item.key: item for item in dataset.items}
    shown = [items[key] for key in val.views["key"]]
    truths = [read_truth(item, dataset.space, image_size(item.image)) for item in shown]
    tried = changes(sample_tokens(train, _SAMPLE, 0))
    print("| tokens | accuracy | mIoU |\n|---|---|---|")
    for name, change in tried.items():
        changed = [unit(change(tokens)) for tokens in train.tokens(range(len(train)))]
        points = torch.cat([tokens.flatten(0, 1) for tokens in changed])
        seen = [unit(change(tokens)) for tokens in val.tokens(range(len(val)))]
        accuracies, mious = [], []
        for seed in arguments.seeds:
            generator = torch.Generator().manual_seed(seed)
            chosen = points[torch.randperm(len(points), generator=generator)[:_SAMPLE]]
            centres = spherical_kmeans(chosen, arguments.classes, restarts=3, seed=seed).centroids
            confusion = Confusion(arguments.classes, len(dataset.space.names))
            for tokens, truth in zip(seen, truths, strict=True):
                scores = (tokens @ centres.T).movedim(-1, 0)[None]
                large = F.interpolate(scores, size=truth.shape, mode="bilinear", align_corners=False)[0]
                confusion.update(large.argmax(0).numpy().astype(np.int64), truth)
            result = confusion.compute()
            accuracies.append(100 * result.accuracy)
            mious.append(100 * result.miou)
        print(f"| {name} | {statistics.mean(accuracies):.1f} | {statistics.mean(mious):.1f} |", flush=True)


if __name__ == "__main__":
    main()
