"""Which block's tokens to take: k-means on several blocks, and figures without labels that might choose between them.

    python benchmarks/blocks.py DATASET [--root DIR] [--classes K] [--backbone NAME --weights FILE] [--debias 0]
        [--layers=-1,-2,-3,-4,-5,-1+-3] [--images 90] [--seeds 0 1 2]

-1+-3 are the tokens of two blocks side by side.

Fitted on train, scored on val, 224 x 224 pixels, maps of 64 x 64 cells, no CRF. Beside mIoU: the share of the tokens'
variance within images that place tells; the share of tokens whose nearest other one is of their own image; how much
nearer tokens are to their centroid than to each other; what colours change more at borders of classes than within; and
the mutual information of the classes with those of the other blocks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.images import image_size, read_image
from unsupseg_cli.data.items import Item, spread
from unsupseg_cli.data.placement import explained_by_place
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.label_free import border_contrast
from unsupseg_cli.models.backbone import Backbone, load_backbone

_SIDE, _CELLS = 224, 64  # pixels of an image, cells of a map
_SAMPLE, _ASKED = 10_000, 1_500  # tokens that are clustered, and that are asked for their nearest


def pictures(items: Sequence[Item], side: int) -> NDArray[np.uint8]:
    images = [Image.fromarray(read_image(item.image, item.reading)) for item in items]
    return np.stack([np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in images])


@torch.inference_mode()
def tokens(network: Backbone, images: NDArray[np.uint8]) -> Tensor:
    """Return the tokens (N, h, w, C) of images, at length 1."""
    batches = torch.split(torch.from_numpy(images), 8)
    looks = [network(network.normalise(batch), keep=("patch",))["patch"] for batch in batches]
    return F.normalize(torch.cat(looks).float(), dim=-1)


def cells(found: Tensor, centroids: Tensor) -> NDArray[np.int16]:
    """Return the classes (N, S, S) of tokens, interpolated as scores."""
    scores = (found @ centroids.T).movedim(-1, 1)
    large = F.interpolate(scores, size=(_CELLS, _CELLS), mode="bilinear", align_corners=False)
    return large.argmax(1).numpy().astype(np.int16)


def own_nearest(found: Tensor) -> float:
    """Return the share of tokens whose nearest other token is of their own image."""
    flat, per_image = found.flatten(0, 2), found.shape[1] * found.shape[2]
    asked = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:_ASKED]
    alike = flat[asked] @ flat.T
    alike[torch.arange(len(asked)), asked] = -1
    return float((alike.argmax(1) // per_image == asked // per_image).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--classes", type=int)
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--debias", type=int, default=0)
    parser.add_argument("--layers", default="-1,-2,-3,-4,-5,-1+-3")
    parser.add_argument("--images", type=int, default=90)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    train, val = (open_dataset(options.dataset, root=options.root, split=split) for split in ("train", "val"))
    assert val.space is not None
    fitted, scored = spread(train.items, options.images), spread(val.items, options.images)
    shown, judged = pictures(fitted, _SIDE), pictures(scored, _SIDE)
    small = pictures(fitted, _CELLS)
    places = (np.arange(_CELLS) + 0.5) / _CELLS
    truths = []
    for item in scored:
        truth = read_truth(item, val.space, image_size(item.image))
        rows, columns = ((places * length).astype(int) for length in truth.shape)
        truths.append(truth[rows][:, columns])
    names = len(val.space.names)
    lines: dict[str, str] = {}
    first: dict[str, NDArray[np.int16]] = {}
    for layer in options.layers.split(","):
        blocks = tuple(map(int, layer.split("+")))
        network = load_backbone(options.backbone, options.weights, layer=blocks, debias=options.debias)
        found, other = tokens(network, shown), tokens(network, judged)
        flat = found.flatten(0, 2)
        sample = flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:_SAMPLE]]
        place = explained_by_place(F.avg_pool2d(found.movedim(-1, 1), 2).movedim(1, -1).double().numpy())
        apart = float((sample[::2] @ sample[1::2].T).mean())
        scores, contrasts, near = [], [], []
        for seed in options.seeds:
            centroids = spherical_kmeans(sample, options.classes or names, seed=seed).centroids
            confusion = Confusion(len(centroids), names)
            confusion.update(cells(other, centroids), np.stack(truths))
            scores.append(100 * confusion.compute().miou)
            maps = cells(found, centroids)
            first.setdefault(layer, maps)
            contrasts.append(border_contrast(maps, small))
            near.append((float((sample @ centroids.T).amax(1).mean()) - apart) / (1 - apart))
        figures = (place, own_nearest(found), np.mean(near), np.mean(contrasts))
        lines[layer] = f"{np.mean(scores):.1f} ± {np.std(scores):.1f} | " + " | ".join(
            f"{value:.2f}" for value in figures
        )
        print(f"{layer}: {lines[layer]}", flush=True)
    print(
        "\n| block | mIoU | place | own image | near | contrast | other blocks |\n|---|---|---|---|---|---|---|"
    )
    for layer, line in lines.items():
        shared = [
            normalized_mutual_info_score(first[layer].ravel(), maps.ravel())
            for other, maps in first.items()
            if other != layer
        ]
        print(f"| {layer} | {line} | {np.mean(shared):.2f} |")


if __name__ == "__main__":
    main()
