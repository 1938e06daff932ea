"""How models draw boundaries, and whether they see a mirror image as they see the image.

    python benchmarks/boundaries.py WORKSPACE DATASET ROOT MODEL... [--split val] [--every 1] [--width 3]

Scores of each model (its id) over all pixels, and over those within ``width`` pixels of a boundary of the labels, the
trimap of Kohli, Ladicky and Torr (IJCV 2009); clusters are matched to classes once, by the Hungarian rule over all of
them.
``mirror`` is the share of pixels whose class in the mirror image is the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from unsupseg_cli import Context, Workspace
from unsupseg_cli.contents.model import open_model
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.images import image_size
from unsupseg_cli.data.labels import VOID
from unsupseg_cli.data.loader import Loaded, load_views
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.inference.segment import whole_images
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.matching import match


def trimap(truth: NDArray[np.int16], width: int) -> NDArray[np.bool_]:
    """Return the pixels within ``width`` of a boundary between two classes; void has no boundary."""
    near = np.zeros(truth.shape, bool)
    for axis in (0, 1):
        one, other = np.moveaxis(truth, axis, 0)[:-1], np.moveaxis(truth, axis, 0)[1:]
        differ = (one != other) & (one != VOID) & (other != VOID)
        view = np.moveaxis(near, axis, 0)
        view[:-1] |= differ
        view[1:] |= differ
    return np.asarray(ndimage.distance_transform_edt(~near) < width) if near.any() else near


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("root", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--split", default="val")
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    parser.add_argument("--width", type=int, default=3, help="of the trimap on either side, in pixels")
    options = parser.parse_args()
    context = Context(Workspace(options.workspace))
    root = None if options.dataset.endswith("/") else options.root
    dataset = open_dataset(options.dataset, root=root, split=options.split)
    assert dataset.space is not None
    items = dataset.items[:: options.every]
    print("| model | accuracy | mIoU | trimap accuracy | trimap mIoU | mirror |")
    print("|---|---|---|---|---|---|")
    for name in options.models:
        model = open_model(context.workspace.get(name, "model"), context, torch.device("cpu"))
        segmenter = model.segmenter
        everywhere, near = (Confusion(segmenter.outputs, len(dataset.space.names)) for _ in range(2))
        alike = []
        views = load_views(items, whole_images(model.geometry, None), segmenter.multiple, workers=0)
        for item, loaded in zip(items, views, strict=True):
            if not isinstance(loaded, Loaded):
                raise UnsupsegError(loaded.message)
            image = loaded.views[0][1]
            height, width = size = image_size(item.image)
            truth = read_truth(item, dataset.space, size)
            labels = segmenter.labels(segmenter.score(image[None])[0], height, width)
            mirrored = segmenter.score(np.ascontiguousarray(image[None, :, ::-1]))[0]
            alike.append(float((segmenter.labels(mirrored, height, width)[:, ::-1] == labels).mean()))
            everywhere.update(labels, truth)
            near.update(labels, np.where(trimap(truth, options.width), truth, VOID))
        assignment = match(everywhere.matrix)
        scores = [one.compute(assignment=assignment) for one in (everywhere, near)]
        row = [f"{100 * value:.1f}" for one in scores for value in (one.accuracy, one.miou)]
        print(f"| {name} | {' | '.join(row)} | {100 * np.mean(alike):.1f} |", flush=True)


if __name__ == "__main__":
    main()
