"""What the CRF makes of cluster scores whose codes are interpolated, as STEGO publishes it, and of ours.

    python benchmarks/code_norms.py WORKSPACE MODEL DATASET [ROOT] [--split val] [--protocol stego] [--every 1]

Ours interpolates scores and lengths of codes and divides afterwards: the same class in every pixel, scores at most as
sharp. Prints accuracy and mIoU after the CRF of both, how many pixels agree, and the largest difference of
log-probabilities.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from unsupseg_cli import Context, Workspace
from unsupseg_cli.contents.model import model_geometry, open_model
from unsupseg_cli.contents.skipped import Skipped
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.crf import refine_batch
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.inference.segment import segment_items
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.protocols import get_protocol


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--split", default="val")
    parser.add_argument("--protocol", default="stego", help="one that crops")
    parser.add_argument("--every", type=int, default=1, help="take every N-th image")
    options = parser.parse_args()
    context = Context(Workspace(options.workspace))
    artifact = context.workspace.get(options.model, "model")
    model = open_model(artifact, context, torch.device("cpu"))
    linear, protocol = model.require_codes(), get_protocol(options.protocol)
    dataset = open_dataset(options.dataset, root=options.root, split=options.split)
    assert dataset.space is not None
    own, classes = model_geometry(artifact, context), len(dataset.space.names)
    geometry = Geometry(kind=protocol.geometry, size=protocol.size or own.size, filter=protocol.filter)
    items = [item for item in dataset.items if item.label is not None][:: options.every]
    counts = {name: Confusion(linear.outputs, classes) for name in ("ours", "published", "ours, no CRF")}
    equal = same_class = pixels = 0
    largest = 0.0
    skipped = Skipped(context, True)
    for image in segment_items(
        linear, items, geometry, Silent(), flip=protocol.flip, workers=0, skipped=skipped
    ):
        truth = geometry.render_label(
            read_truth(image.item, dataset.space, (image.height, image.width)), image.view
        )
        assert image.scores.codes is not None
        codes = F.interpolate(
            image.scores.codes.movedim(-1, 1), truth.shape, mode="bilinear", align_corners=False
        )[0].movedim(0, -1)
        with torch.inference_mode():
            published = linear.class_head.log_probs(
                linear.class_head.scores(codes), codes.norm(dim=-1)
            ).movedim(-1, 0)
        ours = image.log_probs(*truth.shape)
        largest = max(largest, float((ours - published).abs().max()))
        same_class += int((ours.argmax(0) == published.argmax(0)).sum())
        picture = geometry.render(read_image(image.item.image), image.view)
        refined = [refine_batch([scores], [picture])[0].argmax(0).numpy() for scores in (ours, published)]
        equal, pixels = equal + int((refined[0] == refined[1]).sum()), pixels + truth.size
        for name, labels in zip(counts, (*refined, ours.argmax(0).numpy()), strict=True):
            counts[name].update(labels, truth)
    for name, confusion in counts.items():
        scores = confusion.compute()
        print(f"{name}: accuracy {100 * scores.accuracy:.2f}, mIoU {100 * scores.miou:.2f}")
    print(
        f"{len(items)} images: {equal / pixels:.2%} of the pixels agree after the CRF, "
        f"{same_class / pixels:.2%} before it; log-probabilities differ by at most {largest:.2f}"
    )


if __name__ == "__main__":
    main()
