"""Rules for the number of classes, which see no label, beside the best number in hindsight.

    python benchmarks/class_number.py DATA [--backbones tiny,dinov2_vits14 --weights FILE] [--sets camvid,scenes]

DATA holds camvid, fashion and aerial (images/{train,val}, labels, classes.json) and VOCdevkit. For every number K the
tokens of the training images are clustered (of all images, and of either half of them), and the tokens of the
validation images take the nearest centre; clusters are matched to classes by the Hungarian rule. The best K has the
highest mean mIoU. The K of a rule is looked up in the same curve: its share of the best mIoU says what the rule is
worth, a mean over four samples of tokens where it depends on them. Fixed numbers are the baselines. The last row tells
what choosing a rule is worth: on each set the one that is best on the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, calinski_harabasz_score, davies_bouldin_score

from unsupseg_cli import Context, ExtractConfig, TqdmReporter, Workspace, extract
from unsupseg_cli.clustering.class_number import (
    SHARE,
    VARIANCE,
    components,
    largest_of_share,
    numbers,
    scan,
)
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
SAMPLE, JUDGED, IMAGES, SEEDS = 4000, 2000, 96, 4
SIZES = {"tiny": 240}  # shorter side of a view; 320 with other backbones
SHARES = (0.6, VARIANCE, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbones", default="tiny")
    parser.add_argument("--weights", type=Path, help="of the backbones other than tiny")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--workspace", type=Path, default=Path("unsupseg-workspace"))
    parser.add_argument("--curves", type=Path, help="folder that keeps the curves of each set, to go on")
    options = parser.parse_args()
    measured = []
    for backbone in options.backbones.split(","):
        for name in options.sets.split(","):
            kept = options.curves / f"{name}-{backbone}.json" if options.curves else None
            if kept and kept.exists():
                curves = json.loads(kept.read_text())
            else:
                curves = measure(name, backbone, options)
                if kept:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps(curves))
            measured.append({**curves, "backbone": backbone})
    print_table(measured)


def measure(name: str, backbone: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the curves over K of one data set, by name."""
    train, _ = features(name, "train", backbone, options)
    val, labels = features(name, "val", backbone, options)
    counts = label_counts(val, labels)
    tokens = F.normalize(torch.cat([one.flatten(0, 1) for one in val.tokens(range(len(val)))]), dim=1)
    samples = [F.normalize(sample_tokens(train, SAMPLE, seed), dim=1) for seed in range(SEEDS)]
    halves = split_images(train)
    scans = [scan_numbers(points, seed) for seed, points in enumerate(samples)]
    ends = [scan_numbers(half, 0)[1] for half in halves]
    judged = samples[0][:JUDGED].numpy()
    rows = []
    for index in range(len(NUMBERS)):
        runs = [scans[0][1][index], *(end[index] for end in ends)]
        groups = [nearest(samples[0], centres)[0].numpy() for centres in runs]
        rows.append(
            {
                "miou": float(np.mean([miou(centres, tokens, counts) for centres in runs])),
                "stability": float(adjusted_rand_score(*groups[1:])),
                "Calinski-Harabasz": float(calinski_harabasz_score(judged, groups[0][:JUDGED])),
                "Davies-Bouldin": -float(davies_bouldin_score(judged, groups[0][:JUDGED])),
                "inertia": float(1 - nearest(samples[0], runs[0])[1].mean()),
            }
        )
    curves: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0]}
    curves |= {"name": name, "classes": int((counts.sum(0) > 0).sum())}
    curves["components"] = {str(share): components(samples[0], share) for share in SHARES}
    return curves | {"silhouettes": [values for values, _ in scans]}


def scan_numbers(points: torch.Tensor, seed: int) -> tuple[list[float], list[torch.Tensor]]:
    """Return silhouettes and centres of the numbers, and of no other."""
    found = scan(points, *RANGE, seed=seed, reporter=TqdmReporter())
    places = [found.classes.index(k) for k in NUMBERS]
    return [found.silhouette[place] for place in places], [found.centroids[place] for place in places]


def features(
    name: str, split: str, backbone: str, options: argparse.Namespace
) -> tuple[FeatureSet, dict[str, Any]]:
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
        backbone=backbone,
        weights=None if backbone == "tiny" else options.weights,
        size=SIZES.get(backbone, 320),
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


Rule = Callable[[dict[str, Any], int], int]
"""The curves of a set, and which of the samples of tokens -> K."""


def rules() -> dict[str, Rule]:
    """Return the rules by name."""

    def highest(name: str) -> Rule:
        return lambda curves, seed: NUMBERS[int(np.argmax(curves[name]))]

    def of_share(share: float) -> Rule:
        return lambda curves, seed: largest_of_share(NUMBERS, tuple(curves["silhouettes"][seed]), share)

    def of_variance(share: float) -> Rule:
        return lambda curves, seed: int(np.clip(curves["components"][str(share)], *RANGE))

    def above_trend(curves: dict[str, Any], seed: int) -> int:
        x, y = np.log(NUMBERS), np.array(curves["silhouettes"][seed])
        return NUMBERS[int(np.argmax(y - np.polyval(np.polyfit(x, y, 1), x)))]

    def larger(one: Rule, other: Rule) -> Rule:
        return lambda curves, seed: max(one(curves, seed), other(curves, seed))

    found: dict[str, Rule] = {"silhouette, highest": of_share(1.0)}
    found |= {f"silhouette, largest K of {share:.0%}": of_share(share) for share in (0.95, SHARE, 0.85, 0.75)}
    found |= {f"components of {share:.0%} of the variance": of_variance(share) for share in SHARES}
    found[f"the larger of {SHARE:.0%} and {VARIANCE:.0%}"] = larger(of_share(SHARE), of_variance(VARIANCE))
    found["silhouette, farthest above its fall with log K"] = above_trend
    found["stability over halves, highest"] = highest("stability")
    found["stability over halves, largest K of 80%"] = lambda curves, seed: largest_of_share(
        NUMBERS, tuple(curves["stability"]), 0.8
    )
    found["knee of the inertia"] = lambda curves, seed: knee(curves["inertia"])
    found |= {f"{name}, highest": highest(name) for name in ("Calinski-Harabasz", "Davies-Bouldin")}
    for k in (8, 10, 12, 14, 16):
        found[f"always {k}"] = lambda curves, seed, k=k: k
    return found


def print_table(measured: list[dict[str, Any]]) -> None:
    """Print a row for each rule: its K on each set, and its share of the best mIoU by backbone, mean and least."""
    backbones = list(dict.fromkeys(one["backbone"] for one in measured))
    names = [one["name"] for one in measured if one["backbone"] == backbones[0]]
    print(f"sets, in this order for each backbone: {', '.join(names)}\n")
    print("| rule | " + " | ".join(f"K, {one} | mean % of best" for one in backbones) + " | mean | least |")
    print("|---|" + "---|" * (2 * len(backbones) + 2))
    rows = {name: [of_rule(rule, one) for one in measured] for name, rule in rules().items()}
    best = [NUMBERS[int(np.argmax(one["miou"]))] for one in measured]
    print_row("best in hindsight", [(k, 1.0) for k in best], measured, backbones)
    for name, row in sorted(rows.items(), key=lambda entry: -mean_share(entry[1])):
        print_row(name, row, measured, backbones)
    sets = {one["name"] for one in measured}
    others = {
        left: max(
            rows,
            key=lambda name: mean_share(
                [r for r, one in zip(rows[name], measured, strict=True) if one["name"] != left]
            ),
        )
        for left in (sets if len(sets) > 1 else ())
    }
    if others:
        row = [rows[others[one["name"]]][place] for place, one in enumerate(measured)]
        print_row("the rule that is best on the other sets", row, measured, backbones)
        print(f"\nthat is: {', '.join(f'{left}: {rule}' for left, rule in sorted(others.items()))}")
    print()
    for one in measured:
        scores = " ".join(f"{k}:{100 * value:.1f}" for k, value in zip(NUMBERS, one["miou"], strict=True))
        print(f"mIoU over K, {one['name']} ({one['classes']} classes), {one['backbone']}: {scores}")


def of_rule(rule: Rule, curves: dict[str, Any]) -> tuple[int, float]:
    """Return the K of a rule on the first sample, and its mean share of the best mIoU over the samples."""
    found = [rule(curves, seed) for seed in range(SEEDS)]
    shares = np.interp(found, NUMBERS, curves["miou"]) / max(curves["miou"])
    return found[0], float(shares.mean())


def mean_share(row: list[tuple[int, float]]) -> float:
    """Return the mean share of a row."""
    return float(np.mean([share for _, share in row]))


def print_row(
    name: str, row: list[tuple[int, float]], measured: list[dict[str, Any]], backbones: list[str]
) -> None:
    """Print one row of the table."""
    cells = []
    for backbone in backbones:
        part = [entry for entry, one in zip(row, measured, strict=True) if one["backbone"] == backbone]
        cells += [", ".join(str(k) for k, _ in part), f"{100 * mean_share(part):.0f}"]
    print(
        f"| {name} | {' | '.join(cells)} | {100 * mean_share(row):.1f} | {100 * min(s for _, s in row):.0f} |"
    )


if __name__ == "__main__":
    main()
