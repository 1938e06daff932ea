"""How far mIoU hangs on the images that were scored: 95 % bootstrap intervals of evaluations from stored tokens.

    python benchmarks/interval.py WORKSPACE EVALUATION... [--draws 1000] [--groups START,START]

Evaluations of one method with one setting of the CRF, which differ in the seed, are one row: their mean. Each draw
takes as many images with replacement, the same for all rows, and matches clusters anew; the bounds are the 2.5 and 97.5
per cent of the draws. "above" is the share of draws in which the row is above the first row of the same setting.

--groups tells instead of each evaluation, over the images whose names begin with each text: accuracy and mIoU, matched
by themselves, and of each class the IoU, and the cluster that has most of its pixels with its share.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unsupseg_cli.artifacts.artifact import Artifact
from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.images import reopen
from unsupseg_cli.contents.model import open_model
from unsupseg_cli.contents.skipped import Skipped
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.crf import refine_batch
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.inference.stored import segment_stored
from unsupseg_cli.metrics.confusion import Confusion

Row = tuple[str, bool]


def confusions(evaluation: Artifact, context: Context) -> list[Confusion]:
    """Return the confusion of each image."""
    uses = {role: evaluation.input(role) for role in ("model", "features")}
    artifacts = {role: context.workspace.get(used.id, role) for role, used in uses.items() if used}
    model = open_model(artifacts["model"], context, torch.device("cpu"), tokens=artifacts.get("features"))
    assert evaluation.manifest.data is not None
    dataset = reopen(evaluation.manifest.data)
    assert dataset.space is not None
    features, found = FeatureSet(artifacts["features"]), []
    told = {"flip": False, "skipped": Skipped(context)}
    for one in segment_stored(model.segmenter, features, dataset.items, model.geometry, Silent(), **told):
        log_probs = one.log_probs(one.height, one.width)
        if evaluation.manifest.config["crf"] is not None:
            log_probs = refine_batch([log_probs], [read_image(one.item.image)])[0]
        confusion = Confusion(len(log_probs), len(dataset.space.names))
        truth = read_truth(one.item, dataset.space, (one.height, one.width))
        confusion.update(log_probs.argmax(0).numpy(), truth)
        found.append(confusion)
    return found


def miou(images: list[Confusion], drawn: NDArray[np.int64]) -> float:
    """Return the mIoU in per cent over some images, each as often as it is drawn."""
    whole = Confusion(images[0].clusters, images[0].classes)
    for image in drawn.tolist():
        whole.matrix += images[image].matrix
    return 100 * whole.compute().miou


def tell_groups(evaluation: Artifact, starts: list[str], context: Context) -> None:
    """Print the scores of the images whose names begin with each text, and of all."""
    assert evaluation.manifest.data is not None
    dataset, images = reopen(evaluation.manifest.data), confusions(evaluation, context)
    assert dataset.space is not None
    for start in [*starts, ""]:
        whole = Confusion(images[0].clusters, images[0].classes)
        for item, image in zip(dataset.items, images, strict=True):
            if item.key.rpartition("/")[2].startswith(start):
                whole.matrix += image.matrix
        scores = whole.compute()
        print(f"{evaluation.id}, {start or 'all'}: {100 * scores.accuracy:.1f} / {100 * scores.miou:.1f}")
        shares = whole.matrix / whole.matrix.sum(0).clip(1)
        for number, name in enumerate(dataset.space.names):
            most = int(shares[:, number].argmax())
            iou = 100 * float(scores.iou[number])
            print(f"    {name}: IoU {iou:.0f}, {shares[most, number]:.0%} in cluster {most}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("evaluations", nargs="+")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--groups", help="beginnings of names")
    options = parser.parse_args()
    context = Context(Workspace(options.workspace), Silent())
    if options.groups:
        for name in options.evaluations:
            evaluation = context.workspace.get(name, "evaluation")
            tell_groups(evaluation, options.groups.split(","), context)
        return
    rows: dict[Row, list[list[Confusion]]] = defaultdict(list)
    for name in options.evaluations:
        evaluation = context.workspace.get(name, "evaluation")
        model = evaluation.input("model")
        assert model is not None
        method = context.workspace.get(model.id, "model").manifest.config["method"]
        rows[method, evaluation.manifest.config["crf"] is not None].append(confusions(evaluation, context))
    count, draw = len(next(iter(rows.values()))[0]), np.random.default_rng(0)
    draws = [np.arange(count), *(draw.integers(0, count, count) for _ in range(options.draws))]
    first: dict[bool, NDArray[np.float64]] = {}
    for (method, crf), seeds in rows.items():
        scores = np.array([np.mean([miou(images, drawn) for images in seeds]) for drawn in draws])
        low, high = np.percentile(scores[1:], [2.5, 97.5])
        above = (scores > first.setdefault(crf, scores))[1:].mean()
        setting = f"{'CRF' if crf else 'no CRF'}, {len(seeds)} seeds"
        print(f"{method}, {setting}: {scores[0]:.2f} ({low:.2f} to {high:.2f}), above the first {above:.0%}")


if __name__ == "__main__":
    main()
