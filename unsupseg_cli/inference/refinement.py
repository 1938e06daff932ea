"""Scores and pixels -> labels refined by a dense CRF."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.crf import CRFConfig, refine_batch

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


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of up to ``size`` items (at least one)."""
    iterator = iter(items)
    while part := list(islice(iterator, max(1, size))):
        yield part
