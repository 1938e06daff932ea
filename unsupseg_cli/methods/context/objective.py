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


def balance_loss(shares: Tensor, of_all: Tensor, start: Tensor) -> Tensor:
    """Return how far the classes' shares went from those of the start: the balance of RIM's objective, with a prior.

    Its gradient is that of KL(of_all || start) whichever part of the batch this process sees; where it sees all, its
    value is too. Without it the clusters that teach themselves end as one. Source: Krause, Perona, Gomes:
    Discriminative Clustering by Regularized Information Maximization (NIPS 2010).

    Args:
        shares: mean probability of each class over the cells of this process, (K,).
        of_all: the same over the cells of all processes, without gradient.
        start: shares of the classes at the start.
    """
    return (shares * (of_all.clamp_min(_LEAST) / start).log()).sum()


_LEAST = 1e-6  # of a share whose logarithm is taken
