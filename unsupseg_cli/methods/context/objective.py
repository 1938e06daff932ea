"""What cells of two views and their guidance say against each other."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def guidance_loss(scores: Tensor, guidance: Tensor) -> Tensor:
    """Return KL(guidance || softmax(scores)) of each view, (B,), the mean over cells.

    Args:
        scores: (B, K, h, w).
        guidance: (B, K, h, w), sums to one over K.
    """
    divergence = F.kl_div(scores.log_softmax(1), guidance, reduction="none").sum(1)
    return divergence.mean((1, 2))


def class_loss(scores: Tensor, classes: Tensor) -> Tensor:
    """Return the cross-entropy of each view, (B,), the mean over cells.

    Args:
        scores: (B, K, h, w).
        classes: (B, h, w).
    """
    return F.cross_entropy(scores, classes, reduction="none").mean((1, 2))
