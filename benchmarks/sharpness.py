"""What the sharpness of class scores leaves for the CRF to do: models with their scores scaled, before and after it.

    python benchmarks/sharpness.py WORKSPACE DATASET ROOT MODEL... [--split val] [--every 1] [--sheet FILE.jpg]

The log-probabilities of each model (its id) are multiplied by factors that bring the mean probability of the winning
class, its confidence, to given values. A positive factor leaves every winner as it is, so all rows of a model have one
score without the CRF, and differ with it by sharpness alone. ``own`` is the model as trained. ``mended`` are the pixels
that only the CRF got right, ``spoilt`` those that it got wrong; ``alike`` is the share of neighbouring cells of the
token grid that were of one class before it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.model import OpenModel, open_model
from unsupseg_cli.contents.skipped import Skipped
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.crf import refine_batch
from unsupseg_cli.data.datasets import Dataset, open_dataset
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.inference.segment import segment_items
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.matching import match
from unsupseg_cli.metrics.scores import score
from unsupseg_cli.report.overlay import blend
from unsupseg_cli.report.sheet import grid

CONFIDENCES = (0.2, 0.5)
SHOWN = 4
CHUNK = 16


def logits_of(model: OpenModel, dataset: Dataset, every: int) -> list[Tensor]:
    """Return the log-probabilities (K, h, w) of some images on the token grid."""
    segmented = segment_items(
        model.segmenter,
        dataset.items[::every],
        model.geometry,
        Silent(),
        flip=False,
        workers=1,
        skipped=Skipped(Context()),
    )
    return [one.log_probs(*one.scores.norm.shape).clone() for one in segmented]


def confidence(logits: list[Tensor], factor: float) -> float:
    """Return the mean probability of the winning class."""
    cells = torch.cat([one.flatten(1) for one in logits], 1)
    return float((factor * cells).softmax(0).amax(0).mean())


def factor_for(logits: list[Tensor], wanted: float) -> float:
    """Return the factor that brings the confidence to ``wanted``, by bisection."""
    low, high = 1e-3, 1e3
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if confidence(logits, middle) < wanted else (low, middle)
    return (low * high) ** 0.5


def refined(logits: list[Tensor], factor: float, images: list[NDArray[np.uint8]]) -> list[NDArray[np.int64]]:
    found: list[NDArray[np.int64]] = []
    for first in range(0, len(logits), CHUNK):
        part = images[first : first + CHUNK]
        scores = [
            (factor * resized(one, image)).log_softmax(0)
            for one, image in zip(logits[first : first + CHUNK], part, strict=True)
        ]
        found += [q.argmax(0).numpy() for q in refine_batch(scores, part)]
    return found


def alike(logits: list[Tensor]) -> float:
    """Return the share of neighbouring cells that have the same class."""
    same, pairs = 0, 0
    for one in logits:
        labels = one.argmax(0)
        for equal in (labels[1:] == labels[:-1], labels[:, 1:] == labels[:, :-1]):
            same, pairs = same + int(equal.sum()), pairs + equal.numel()
    return same / pairs


def resized(logits: Tensor, image: NDArray[np.uint8]) -> Tensor:
    return F.interpolate(logits[None], size=image.shape[:2], mode="bilinear")[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("root", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--split", default="val")
    parser.add_argument("--every", type=int, default=1, help="take every N-th image")
    parser.add_argument(
        "--sheet", type=Path, help="a picture of some images: each model, as trained and least confident"
    )
    options = parser.parse_args()
    dataset = open_dataset(options.dataset, root=options.root, split=options.split)
    assert dataset.space is not None
    context = Context(Workspace(options.workspace), Silent())
    items = dataset.items[:: options.every]
    images = [read_image(item.image) for item in items]
    truth = [
        read_truth(item, dataset.space, image.shape[:2]) for item, image in zip(items, images, strict=True)
    ]
    names, colors = dataset.space.names, np.array(dataset.space.colors, np.uint8)
    shown = np.linspace(0, len(images) - 1, SHOWN).round().astype(int).tolist()
    rows, titles = [[images[one]] for one in shown], ["image"]

    def mark(
        labels: list[NDArray[np.int64]], clusters: int, title: str | None
    ) -> tuple[float, NDArray[np.bool_]]:
        """Return the mIoU and which labelled pixels are right."""
        confusion = Confusion(clusters, len(names))
        for one, target in zip(labels, truth, strict=True):
            confusion.update(one, target)
        assignment = match(confusion.matrix, "hungarian")
        if title:
            titles.append(title)
            for row, one in zip(rows, shown, strict=True):
                row.append(blend(images[one], assignment[labels[one]], colors))
        right = [
            assignment[one][target >= 0] == target[target >= 0]
            for one, target in zip(labels, truth, strict=True)
        ]
        return 100 * score(confusion.matrix, assignment).miou, np.concatenate(right)

    print(f"{options.dataset}, {len(items)} images of {options.split}\n")
    print("| model | alike % | scores | confidence | mIoU | with CRF | mended % | spoilt % |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.models:
        artifact = context.workspace.get(name, "model")
        model = open_model(artifact, context, torch.device("cpu"))
        logits = logits_of(model, dataset, options.every)
        plain = [resized(one, image).argmax(0).numpy() for one, image in zip(logits, images, strict=True)]
        before, right = mark(plain, len(logits[0]), None)
        factors = {"own": 1.0} | {f"{one:.2f}": factor_for(logits, one) for one in CONFIDENCES}
        for number, (what, factor) in enumerate(factors.items()):
            labels = refined(logits, factor, images)
            after, now_right = mark(
                labels, len(logits[0]), f"{model.file.method}, {what}" if number < 2 else None
            )
            mended, spoilt = (now_right & ~right).mean(), (right & ~now_right).mean()
            figures = (before, after, 100 * mended, 100 * spoilt)
            cells = [artifact.id, f"{100 * alike(logits):.1f}", what, f"{confidence(logits, factor):.2f}"]
            print("| " + " | ".join(cells + [f"{one:.2f}" for one in figures]) + " |", flush=True)
    if options.sheet:
        grid(rows, titles, cell=240).save(options.sheet)


if __name__ == "__main__":
    main()
