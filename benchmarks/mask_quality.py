"""How good PriMaPs' masks are, judged by labels: every mask takes the class that most of its pixels have.

    python benchmarks/mask_quality.py DATASET [ROOT] [--split val] [--size 192] [--every 1] [--backbone tiny]
        [--weights FILE] [--draws 0]

A row for each way to centre the tokens, and for each rule of the anchor, without the CRF: masks per view, and accuracy
and mIoU of the best that a labelling of whole masks can reach. A single mask per view is the floor. With --draws how
often the sign that `torch.pca_lowrank` gives to an axis is the one of anchor=signed, over as many draws for each of
eight images.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.methods.interface import Inputs
from unsupseg_cli.methods.primaps.config import PseudolabelOptions
from unsupseg_cli.methods.primaps.pseudolabel import PrimapsLabeller, oriented
from unsupseg_cli.models.backbone import load_backbone
from unsupseg_cli.pretraining.patch_probe import some_labelled
from unsupseg_cli.training.tokens import MemorySource

CENTERS = ("none", "image")
ANCHORS = ("largest", "signed")


def oracle(masks: NDArray[np.int16], truth: NDArray[np.int16], classes: int) -> NDArray[np.int64]:
    """Return the confusion (classes, classes), truth by columns, after each mask took its commonest class."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(truth.shape, masks.shape, strict=True))
    large = masks[np.ix_(rows, columns)]
    confusion = np.zeros((classes, classes), np.int64)
    for mask in np.unique(large):
        inside = truth[(large == mask) & (truth >= 0)]
        if len(inside):
            counts = np.bincount(inside, minlength=classes)
            confusion[counts.argmax()] += counts
    return confusion


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--split", default="val")
    parser.add_argument("--size", type=int, default=192, help="shorter side in pixels")
    parser.add_argument("--every", type=int, default=1, help="take every N-th image")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--draws", type=int, default=0)
    options = parser.parse_args()
    dataset = open_dataset(options.dataset, root=options.root, split=options.split)
    assert dataset.space is not None
    backbone = load_backbone(options.backbone, weights=options.weights)
    geometry = Geometry(kind="native", size=options.size)
    tokens: list[Tensor] = []
    truths = []
    for item in some_labelled(dataset)[:: options.every]:
        image = read_image(item.image)
        view = geometry.views(*image.shape[:2], backbone.patch_size)[0]
        pixels = torch.from_numpy(geometry.render(image, view).copy())[None]
        tokens.append(backbone(backbone.normalise(pixels), keep=("patch",))["patch"][0].clone())
        truths.append(read_truth(item, dataset.space, image.shape[:2]))
    print(f"{options.dataset}, {len(tokens)} images of {options.split}\n")
    print("| center | anchor | masks per view | accuracy | mIoU |")
    print("|---|---|---|---|---|")
    classes = len(dataset.space.names)
    for center, anchor in itertools.product(CENTERS, ANCHORS):
        chosen = PseudolabelOptions(crf=False, center=center, anchor=anchor)
        labeller = PrimapsLabeller(chosen, Inputs(MemorySource(tokens)))
        labeller.fit()
        masks = [view.labels for view in labeller.label(range(len(tokens)))]
        confusion = sum(oracle(*pair, classes) for pair in zip(masks, truths, strict=True))
        hit = np.diag(confusion)
        iou = hit / np.maximum(confusion.sum(0) + confusion.sum(1) - hit, 1)
        per_view = np.mean([one.max() + 1 for one in masks])
        print(
            f"| {center} | {anchor} | {per_view:.1f} "
            f"| {100 * hit.sum() / confusion.sum():.1f} | {100 * iou.mean():.1f} |"
        )
    for share, name in ((1.0, "all cells"), (0.4, "the last 40 % of the cells")):
        if options.draws:
            agrees = [sign_agreement(view, share, options.draws) for view in tokens[:8]]
            print(f"sign of the axis of {name}: {np.mean(agrees):.0%} of the draws as anchor=signed has it")


def sign_agreement(tokens: Tensor, share: float, draws: int) -> float:
    """Return how often `torch.pca_lowrank` gives the axis of some last cells of a view the sign of the rule."""
    cells = tokens.flatten(0, 1)[-int(share * tokens[..., 0].numel()) :]
    rule = oriented(
        torch.linalg.eigh(torch.cov(cells.T)).eigenvectors[:, -1][None],
        (cells - cells.mean(0))[None],
        torch.ones(1, len(cells), dtype=torch.bool),
    )[0]
    axes = [torch.pca_lowrank(cells, q=3, niter=100)[2][:, 0] for _ in range(draws)]
    return float(np.mean([float(axis @ rule) > 0 for axis in axes]))


if __name__ == "__main__":
    main()
