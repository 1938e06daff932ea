"""How often an image's object mask is an object, judged by labels: MaskDistill's beside plain ones.

    python benchmarks/object_masks.py DATASET [ROOT] [--split val] [--size 320] [--backbone dinov2_vits14]
        [--weights FILE] [--every 1] [--try heads=6,center=image ...]

A row for each way to make one mask per image, first MaskDistill by our defaults and by the published ones: the share
of images whose mask has an IoU above 0.5 with an object, with its 95 % bootstrap interval over images, the mean of the
best IoU, and the share of the image that the mask covers.
An object is a 4-connected region of one class other than --background, of at least 1 % of the image;
--merge takes all such classes as one. Images without an object are left out, and counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.masks import component
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.methods.interface import Inputs
from unsupseg_cli.methods.maskdistill.config import MasksOptions
from unsupseg_cli.methods.maskdistill.masks import find_objects
from unsupseg_cli.methods.primaps.config import PseudolabelOptions
from unsupseg_cli.methods.primaps.pseudolabel import PrimapsLabeller
from unsupseg_cli.models.backbone import load_backbone
from unsupseg_cli.pretraining.patch_probe import some_labelled
from unsupseg_cli.training.tokens import MemorySource

KEPT = ("patch", "key", "cls_query", "attention")
Grid = NDArray[np.bool_]


def objects_of(truth: NDArray[np.int16], background: int, merge: bool) -> list[Grid]:
    """Return the objects (H, W) of a label map."""
    classes = [value for value in np.unique(truth).tolist() if value >= 0 and value != background]
    regions = [np.isin(truth, classes)] if merge else [truth == value for value in classes]
    found = []
    for region in regions:
        parts, count = ndimage.label(region)
        found += [parts == number for number in range(1, count + 1)]
    return [one for one in found if one.sum() >= 0.01 * truth.size]


def best_iou(mask: Grid, objects: Sequence[Grid]) -> float:
    """Return the highest IoU of a mask of the token grid with an object, at the size of the image."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(objects[0].shape, mask.shape, strict=True))
    large = mask[np.ix_(rows, columns)]
    return max(float((large & one).sum() / (large | one).sum()) for one in objects)


def attended(attention: Tensor) -> Grid:
    """Return the component around the most attended cell, of the cells that hold 60 % of the mean attention."""
    mean = attention.mean(0).numpy()
    order = np.argsort(-mean, axis=None)
    held = np.cumsum(mean.flat[order]) / mean.sum()
    kept = np.zeros(mean.size, bool)
    kept[order[: int(np.searchsorted(held, 0.6)) + 1]] = True
    return component(kept.reshape(mean.shape), int(order[0]))


def principal(tokens: Sequence[Tensor], attention: Sequence[Tensor]) -> tuple[list[Grid], list[Grid]]:
    """Return of PriMaPs' proposals of each image the largest, and the one attended to most on average."""
    labeller = PrimapsLabeller(PseudolabelOptions(crf=False), Inputs(MemorySource(tokens)))
    labeller.fit()
    largest, looked_at = [], []
    for masks, weight in zip(labeller.label(range(len(tokens))), attention, strict=True):
        parts = [masks.labels == number for number in range(len(masks.area))] or [masks.labels < 0]
        mean = weight.mean(0).numpy()
        largest.append(max(parts, key=np.sum))
        looked_at.append(max(parts, key=lambda one: mean[one].mean()))
    return largest, looked_at


def row(name: str, masks: Sequence[Grid], objects: Sequence[Sequence[Grid]]) -> str:
    """Return a line of the table."""
    iou = np.array([best_iou(*pair) for pair in zip(masks, objects, strict=True)])
    drawn = np.random.default_rng(0).choice(iou > 0.5, (2000, len(iou))).mean(1)
    low, high = 100 * np.quantile(drawn, (0.025, 0.975))
    area = 100 * np.mean([mask.mean() for mask in masks])
    share = f"{100 * np.mean(iou > 0.5):.1f} ({low:.1f} to {high:.1f})"
    return f"| {name} | {share} | {100 * iou.mean():.1f} | {area:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--split", default="val")
    parser.add_argument("--size", type=int, default=320, help="shorter side in pixels")
    parser.add_argument("--every", type=int, default=1, help="take every N-th image")
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--background", type=int, default=0, help="class that is no object; -1: none")
    parser.add_argument("--merge", action="store_true", help="all objects' classes are one")
    parser.add_argument(
        "--try",
        dest="tried",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="a further row with these options",
    )
    options = parser.parse_args()
    dataset = open_dataset(options.dataset, root=options.root, split=options.split)
    assert dataset.space is not None
    backbone = load_backbone(options.backbone, weights=options.weights)
    geometry = Geometry(kind="native", size=options.size)
    arrays: dict[str, list[Tensor]] = {name: [] for name in KEPT}
    objects, without = [], 0
    for item in some_labelled(dataset)[:: options.every]:
        image = read_image(item.image)
        here = objects_of(read_truth(item, dataset.space, image.shape[:2]), options.background, options.merge)
        if not here:
            without += 1
            continue
        objects.append(here)
        view = geometry.views(*image.shape[:2], backbone.patch_size)[0]
        pixels = torch.from_numpy(geometry.render(image, view).copy())[None]
        for name, value in backbone(backbone.normalise(pixels), keep=KEPT).items():
            arrays[name].append(value[0].clone())
    print(f"{options.dataset}, {len(objects)} images of {options.split}; {without} have no object\n")
    print("| mask | IoU > 0.5, % of images | mean IoU | % of the image |\n|---|---|---|---|", flush=True)
    keys, queries = arrays["key"], arrays["cls_query"]
    for text in ["", "center=none,threshold=0", *options.tried]:
        values = dict(pair.split("=") for pair in text.split(",") if pair)
        found = find_objects(keys, queries, MasksOptions.model_validate(values))
        masks = [
            one.masks[0] if one.masks else np.zeros(view.shape[:2], bool)
            for one, view in zip(found, keys, strict=True)
        ]
        print(row(f"maskdistill {text}".strip(), masks, objects), flush=True)
    largest, looked_at = principal(arrays["patch"], arrays["attention"])
    print(row("PriMaPs, largest", largest, objects))
    print(row("PriMaPs, most attended", looked_at, objects))
    print(row("attention, 60 %", [attended(one) for one in arrays["attention"]], objects))
    print(row("whole image", [np.ones(view.shape[:2], bool) for view in keys], objects))


if __name__ == "__main__":
    main()
