"""Scores and pixels -> labels refined by a dense CRF."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unsupseg_cli.crf import CRFConfig, refine_batch
from unsupseg_cli.crf.config import LONGEST_SIDE
from unsupseg_cli.data.images import read_image
from unsupseg_cli.inference.segment import Segmented
from unsupseg_cli.models.dense import ScoreMap

T = TypeVar("T")


def refine_labels(
    log_probs: list[Tensor],
    images: list[NDArray[np.uint8]],
    config: CRFConfig,
    workers: int,
    device: torch.device | None = None,
) -> list[NDArray[np.int16]]:
    """Return the classes (H, W) of images (H, W, 3) after the CRF, from log-probabilities (K, h, w) float16."""
    scores = [log_prob.to(device).float() for log_prob in log_probs]
    refined = refine_batch(scores, images, config, max(1, workers))
    return [score.max(0).indices.to(torch.int16).numpy() for score in refined]


def refine_segmented(
    images: Sequence[Segmented], config: CRFConfig, workers: int, device: torch.device | None = None
) -> list[NDArray[np.int16]]:
    """Return the classes (H, W) of segmented images after the CRF, at their size.

    An image longer than `LONGEST_SIDE` is refined at that length, and what the CRF says interpolated. Outputs are
    refined before those of one class are merged, so that merging classes takes no pixel from another.
    """
    pixels = [_bounded(read_image(image.item.image, image.item.reading)) for image in images]
    # Rounded as `predict --keep scores` stores them, so that all ways give one figure.
    scores = [
        image.segmenter.output_log_probs(image.scores, image.view.height, image.view.width).half()
        for image in images
    ]
    on_device = [score.to(device).float() for score in scores]
    refined = refine_batch(on_device, pixels, config, max(1, workers))
    return [
        image.segmenter.labels(ScoreMap(probabilities.cpu()), image.height, image.width)
        for image, probabilities in zip(images, refined, strict=True)
    ]


def _bounded(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image (H, W, 3), its longer side `LONGEST_SIDE` at most."""
    height, width = image.shape[:2]
    scale = LONGEST_SIDE / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of up to ``size`` items (at least one)."""
    iterator = iter(items)
    while part := list(islice(iterator, max(1, size))):
        yield part
