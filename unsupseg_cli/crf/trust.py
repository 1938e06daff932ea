"""Hard labels as scores: each is right with a given probability."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def trusted(labels: NDArray[np.int64], classes: int, confidence: float) -> Tensor:
    """Return log-probabilities (K, h, w) of labels (h, w) that are right with this probability; -1 is unknown."""
    known = torch.from_numpy(labels)
    rest = (1 - confidence) / max(1, classes - 1)
    probability = torch.full((classes, *known.shape), rest)
    probability.scatter_(0, known.clamp_min(0)[None], confidence)
    probability[:, known < 0] = 1 / classes
    return (probability / probability.sum(0)).log()
