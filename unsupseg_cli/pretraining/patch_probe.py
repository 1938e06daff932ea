"""How well patch tokens cluster and how much of the labels a linear map reads from them: a diagnosis with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.clustering.linear import fit_linear_probe
from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core import seeds as random
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.progress import Reporter, Silent
from unsupseg_cli.data.datasets import Dataset
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.labels import LabelSpace
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.scores import Scores, score

Encode = Callable[[NDArray[np.uint8]], Tensor]
"""An image (H, W, 3) uint8, sides whole patches -> tokens (h, w, C)."""

_SAMPLE = 50_000  # tokens that k-means is fitted on


@dataclass(frozen=True)
class PatchScores:
    """Scores of k-means, one for each seed, and of the linear probe."""

    kmeans: tuple[Scores, ...]
    linear: Scores

    def as_record(self) -> dict[str, float]:
        """Return the mean mIoU of k-means and the mIoU of the linear probe, in per cent."""
        kmeans = float(np.mean([scores.miou for scores in self.kmeans]))
        return {"probe_kmeans": 100 * kmeans, "probe_linear": 100 * self.linear.miou}


def some_labelled(dataset: Dataset, count: int | None = None) -> list[Item]:
    """Return up to ``count`` labelled images, evenly spread; raises UsageError if there are none."""
    items = [item for item in dataset.items if item.label is not None]
    if not items or dataset.space is None:
        raise UsageError(f"No image of '{dataset.name}', split '{dataset.split}', has a label to probe with.")
    chosen = np.linspace(0, len(items) - 1, min(count or len(items), len(items))).round().astype(int)
    return [items[index] for index in chosen]


def probe_patches(
    encode: Encode,
    train: Sequence[Item],
    test: Sequence[Item],
    space: LabelSpace,
    *,
    size: int | None,
    patch: int,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 1500,
    reporter: Reporter | None = None,
) -> PatchScores:
    """Fit spherical k-means and a linear probe on the tokens of some images and score them on others.

    Clusters are matched to classes on the scored images, by pixel counts; scores are interpolated to the original
    size.

    Args:
        encode: gives the tokens of an image.
        train: images to fit on.
        test: images to score.
        space: classes of their labels.
        size: shorter side in pixels; None keeps the image's.
        patch: pixels of a token's side.
        seeds: of k-means.
        steps: of the linear probe.
        reporter: told about the progress.
    """
    reporter = reporter or Silent()
    geometry = Geometry(kind="native", size=size)
    classes = len(space.names)
    given = [
        _tokens(item, encode, geometry, patch) for item in reporter.track(train, "probe", total=len(train))
    ]
    truth = [torch.from_numpy(_truth(item, space).astype(np.int64)) for item in train]
    centres = [_centres(given, classes, seed) for seed in seeds]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for tokens, labels in zip(given, truth, strict=True):
            # A label of each cell's centre, four to a side.
            rows, columns = (4 * tokens.shape[0], 4 * tokens.shape[1])
            small = F.interpolate(labels[None, None].float(), size=(rows, columns), mode="nearest-exact")
            yield tokens[None].float(), small[0].long()

    linear = fit_linear_probe(batches, classes, int(given[0].shape[-1]), steps=steps, reporter=reporter)
    counts = [Confusion(classes, classes) for _ in (*seeds, "linear")]
    for item in reporter.track(test, "probe", total=len(test)):
        tokens = _tokens(item, encode, geometry, patch).float()
        target = _truth(item, space)
        unit = F.normalize(tokens, dim=-1)
        scores = [unit @ of_seed.T for of_seed in centres] + [linear.scores(tokens)]
        for confusion, grid in zip(counts, scores, strict=True):
            maps = F.interpolate(grid.movedim(-1, 0)[None], size=target.shape, mode="bilinear")
            confusion.update(maps[0].argmax(0).numpy(), target)
    own = score(counts[-1].matrix, np.arange(classes))
    return PatchScores(tuple(confusion.compute() for confusion in counts[:-1]), own)


def _tokens(item: Item, encode: Encode, geometry: Geometry, patch: int) -> Tensor:
    image = read_image(item.image, item.reading)
    (view,) = geometry.views(image.shape[0], image.shape[1], patch)
    return encode(geometry.render(image, view)).half().cpu()


def _truth(item: Item, space: LabelSpace) -> NDArray[np.int16]:
    height, width = read_image(item.image).shape[:2]
    return read_truth(item, space, (height, width))


def _centres(tokens: Sequence[Tensor], classes: int, seed: int) -> Tensor:
    flat = torch.cat([grid.flatten(0, 1) for grid in tokens])
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(random.stream(seed, "sample")))
    sample = F.normalize(flat[order[:_SAMPLE]].float(), dim=-1)
    return spherical_kmeans(sample, classes, restarts=3, seed=random.stream(seed, "kmeans")).centroids
