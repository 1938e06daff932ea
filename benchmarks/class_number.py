"""Rules for the number of classes, which see no label, beside the best number in hindsight.

    python benchmarks/class_number.py DATA [--backbone dinov2_vits14 --weights FILE] [--sets camvid,scenes]

DATA holds camvid, fashion and aerial (images/{train,val}, labels, classes.json) and VOCdevkit. For every number K the
tokens of the training images are clustered (of all images, and of either half of them), and the tokens of the
validation images take the nearest centre; clusters are matched to classes by the Hungarian rule. The best K has the
highest mean mIoU. The K of a rule is looked up in the same curve: its share of the best mIoU says what the rule is
worth. Fixed numbers are the baselines.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, calinski_harabasz_score, davies_bouldin_score

from unsupseg_cli import Context, ExtractConfig, TqdmReporter, Workspace, extract
from unsupseg_cli.clustering.class_number import SHARE, largest_of_share, numbers, scan
from unsupseg_cli.clustering.spherical import nearest
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.images import reopen
from unsupseg_cli.data.images import image_size
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.matching import match
from unsupseg_cli.training.tokens import sample_tokens

RANGE = (4, 30)
NUMBERS = numbers(*RANGE)
SETS = ("camvid", "voc2012", "scenes", "fashion", "aerial")
SAMPLE, JUDGED, IMAGES = 4000, 2000, 96


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=240)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--workspace", type=Path, default=Path("unsupseg-workspace"))
    parser.add_argument("--curves", type=Path, help="folder that keeps the curves of each set, to go on")
    options = parser.parse_args()
    measured = []
    for name in options.sets.split(","):
        kept = options.curves / f"{name}-{options.backbone}.json" if options.curves else None
        if kept and kept.exists():
            curves = json.loads(kept.read_text())
        else:
            curves = measure(name, options)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(curves))
        measured.append(curves)
    print_table(measured)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the curves over K of one data set, by name."""
    train, _ = features(name, "train", options)
    val, labels = features(name, "val", options)
    counts = label_counts(val, labels)
    tokens = F.normalize(torch.cat([one.flatten(0, 1) for one in val.tokens(range(len(val)))]), dim=1)
    points = F.normalize(sample_tokens(train, SAMPLE, 0), dim=1)
    whole = scan(points, *RANGE, seed=0, reporter=TqdmReporter())
    halves = [scan(half, *RANGE, seed=0) for half in split_images(train)]
    judged = points[:JUDGED].numpy()
    rows = []
    for index in range(len(whole.classes)):
        first, *others = (one.centroids[index] for one in (whole, *halves))
        groups = [nearest(points, centres)[0].numpy() for centres in (first, *others)]
        rows.append(
            {
                "miou": float(np.mean([miou(centres, tokens, counts) for centres in (first, *others)])),
                "stability": float(adjusted_rand_score(*groups[1:])),
                "Calinski-Harabasz": float(calinski_harabasz_score(judged, groups[0][:JUDGED])),
                "Davies-Bouldin": -float(davies_bouldin_score(judged, groups[0][:JUDGED])),
            }
        )
    curves: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0]}
    curves |= {"name": name, "classes": int((counts.sum(0) > 0).sum())}
    return curves | {"silhouette": whole.silhouette, "inertia": whole.inertia}


def features(name: str, split: str, options: argparse.Namespace) -> tuple[FeatureSet, dict[str, Any]]:
    """Return the features of a split of a data set, and what opens its labels."""
    folder = options.data / name
    images: dict[str, Any] = {"dataset": name}
    labels: dict[str, Any] = {}
    if name == "voc2012":
        images["root"] = options.data / "VOCdevkit"
    elif name != "scenes":
        images["dataset"] = f"{folder}/"
        labels = {"labels": folder / "labels", "class_file": folder / "classes.json"}
    config = ExtractConfig(
        split=split,
        backbone=options.backbone,
        weights=options.weights,
        size=options.size,
        keep=("patch",),
        **images,
    )
    context = Context(Workspace(options.workspace), TqdmReporter(), most_images=IMAGES)
    return FeatureSet(extract(config, context)), labels


def label_counts(features: FeatureSet, files: dict[str, Any]) -> NDArray[np.int64]:
    """Return how many pixels of each class lie in each token, (n, classes)."""
    data = features.artifact.manifest.data
    dataset = reopen(data, **files)
    items = {item.key: item for item in dataset.items}
    classes, parts = len(dataset.space.names), []
    for key, (height, width) in zip(features.views["key"], features.grids.tolist(), strict=True):
        item = items[key]
        truth = read_truth(item, dataset.space, image_size(item.image))
        rows, columns = (np.arange(n) * m // n for n, m in zip(truth.shape, (height, width), strict=True))
        cell = rows[:, None] * width + columns
        known = truth >= 0
        flat = np.bincount(cell[known] * classes + truth[known], minlength=height * width * classes)
        parts.append(flat.reshape(-1, classes))
    return np.concatenate(parts)


def split_images(features: FeatureSet) -> list[torch.Tensor]:
    """Return tokens of one half of the images, and of the other."""
    order = np.random.default_rng(0).permutation(len(features))
    halves = []
    for views in (order[::2], order[1::2]):
        tokens = torch.cat([one.flatten(0, 1) for one in features.tokens(views.tolist())])
        halves.append(
            tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:SAMPLE]]
        )
    return halves


def miou(centroids: torch.Tensor, tokens: torch.Tensor, counts: NDArray[np.int64]) -> float:
    """Return the mIoU of tokens that take the class of the nearest centre."""
    confusion = Confusion(len(centroids), counts.shape[1])
    np.add.at(confusion.matrix, nearest(tokens, centroids)[0].numpy(), counts)
    return confusion.compute(assignment=match(confusion.matrix)).miou


def knee(values: list[float]) -> int:
    """Return the K whose value lies farthest below the line from the first to the last."""
    x, y = np.array(NUMBERS, float), np.array(values)
    x, y = (x - x[0]) / (x[-1] - x[0]), (y - y[-1]) / (y[0] - y[-1])
    return NUMBERS[int(np.argmax(1 - x - y))]


def chosen(curves: dict[str, Any]) -> dict[str, int]:
    """Return the K of each rule."""

    def highest(name: str) -> int:
        return NUMBERS[int(np.argmax(curves[name]))]

    rules = {f"silhouette, largest K of {share:.0%}": share for share in (0.95, SHARE, 0.85)}
    found = {
        name: largest_of_share(NUMBERS, tuple(curves["silhouette"]), share) for name, share in rules.items()
    }
    found |= {"silhouette, highest": highest("silhouette")}
    found |= {"stability over halves, highest": highest("stability")}
    found |= {
        "stability over halves, largest K of 80%": largest_of_share(NUMBERS, tuple(curves["stability"]), 0.8)
    }
    found |= {"knee of the inertia": knee(curves["inertia"])}
    found |= {f"{name}, highest": highest(name) for name in ("Calinski-Harabasz", "Davies-Bouldin")}
    return found | {f"always {k}": k for k in (8, 10, 12, 16, 21)}


def print_table(measured: list[dict[str, Any]]) -> None:
    """Print a row for each rule: its K and its share of the best mIoU, by data set, then their mean and least."""
    print(
        "| rule | "
        + " | ".join(f"{one['name']} ({one['classes']})" for one in measured)
        + " | mean | least |"
    )
    print("|---|" + "---|" * (len(measured) + 2))
    best = [NUMBERS[int(np.argmax(one["miou"]))] for one in measured]
    scores = [f"{k}: {100 * max(one['miou']):.1f}" for k, one in zip(best, measured, strict=True)]
    print("| best in hindsight: mIoU | " + " | ".join(scores) + " | | |")
    table = {}
    for name in chosen(measured[0]):
        numbers = [chosen(one)[name] for one in measured]
        shares = [
            one["miou"][NUMBERS.index(k)] / max(one["miou"]) for k, one in zip(numbers, measured, strict=True)
        ]
        table[name] = (numbers, shares)
    for name, (numbers, shares) in sorted(table.items(), key=lambda entry: -np.mean(entry[1][1])):
        cells = [f"{k}: {100 * share:.0f}" for k, share in zip(numbers, shares, strict=True)]
        print(f"| {name} | {' | '.join(cells)} | {100 * np.mean(shares):.0f} | {100 * min(shares):.0f} |")


if __name__ == "__main__":
    main()
