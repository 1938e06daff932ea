"""Patch features of backbones on a labelled data set: k-means over three seeds and a linear probe, in one run.

    python benchmarks/backbone.py DATASET ROOT [--split test] [--size 360] [--every 1] [--position 0.5] ROW...

A ROW is ``colour+position`` (mean colour and place of 8x8 pixels, the place 1.5 times; ``colour+position:0.5``: half),
``untrained:ARCH`` (an architecture of `pretrain` with random weights), a backbone name, a folder of a `backbone`
artifact, or ``NAME=FILE`` (a backbone's weights).
A backbone's row that ends in ``+position`` is given the place too, as by `extract --position`.
Both are fitted on every EVERY-th image of the training split; clusters are matched on the scored split. With
``--split train``, the images half-way between those are scored (for choices on more cameras than val shows).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.models.backbone import Backbone, load_backbone
from unsupseg_cli.models.vit import build_vit
from unsupseg_cli.pretraining.config import architecture
from unsupseg_cli.pretraining.patch_probe import Encode, probe_patches, some_labelled

COLOUR_CELL = 8
POSITION_WEIGHT = 1.5  # of a place in [-1, 1] beside colours of unit deviation


def colour_and_position(image: NDArray[np.uint8], weight: float = POSITION_WEIGHT) -> Tensor:
    pixels = torch.from_numpy(image.copy()).movedim(-1, 0)[None].float()
    mean, deviation = torch.tensor([124.0, 116.0, 104.0]), torch.tensor([58.0, 57.0, 57.0])
    cells = (F.avg_pool2d(pixels, COLOUR_CELL)[0].movedim(0, -1) - mean) / deviation
    axes = [torch.linspace(-1, 1, length) for length in cells.shape[:2]]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return torch.cat([cells, weight * place], -1)


def tokens_of(backbone: Backbone) -> Encode:
    def encode(image: NDArray[np.uint8]) -> Tensor:
        return backbone(backbone.normalise(torch.from_numpy(image.copy())[None]), keep=("patch",))["patch"][
            0
        ].clone()

    return encode


def open_row(row: str, position: float = 0.0) -> tuple[Encode, int]:
    if row.startswith("colour+position"):
        weight = float(row.partition(":")[2] or POSITION_WEIGHT)
        return partial(colour_and_position, weight=weight), COLOUR_CELL
    name = row.removesuffix("+position")
    weight = position if name != row else 0.0
    if name.startswith("untrained:"):
        arch = architecture(name.removeprefix("untrained:"))
        backbone = Backbone(build_vit(arch, 96), name, arch["patch_size"], "", position=weight)
    else:
        name, _, file = name.partition("=")
        folder = Path(file or name)
        backbone = load_backbone(name, folder if file or folder.is_dir() else None, position=weight)
    return tokens_of(backbone), backbone.patch_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("root", type=Path)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--split", default="val")
    parser.add_argument("--size", type=int, default=360, help="shorter side in pixels")
    parser.add_argument("--every", type=int, default=1, help="take every N-th training image")
    parser.add_argument("--position", type=float, default=0.5, help="weight of the place in rows +position")
    options = parser.parse_args()
    train, test = (
        open_dataset(options.dataset, root=options.root, split=one) for one in ("train", options.split)
    )
    assert train.space is not None
    given, scored = some_labelled(train)[:: options.every], some_labelled(test)
    if options.split == "train":
        if options.every < 2:
            parser.error("--split train needs --every of 2 or more: what is fitted on is not scored")
        scored = scored[options.every // 2 :: options.every]
    print(
        f"{options.dataset}, fitted on {len(given)} images of train, scored on {len(scored)} of {options.split}\n"
    )
    print("| features | k-means mIoU, by seed | mean | accuracy | linear mIoU | accuracy |")
    print("|---|---|---|---|---|---|")
    for row in options.rows:
        encode, patch = open_row(row, options.position)
        found = probe_patches(encode, given, scored, train.space, size=options.size, patch=patch)
        miou = [100 * one.miou for one in found.kmeans]
        accuracy = np.mean([100 * one.accuracy for one in found.kmeans])
        print(
            f"| {row} | {', '.join(f'{one:.1f}' for one in miou)} | {np.mean(miou):.1f} | {accuracy:.1f} "
            f"| {100 * found.linear.miou:.1f} | {100 * found.linear.accuracy:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
