"""The objectives of PriMaPs-EM: initial clustering, E-step and M-step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.core.labels import VOID

Average = Callable[[Tensor], Tensor]


def same(value: Tensor) -> Tensor:
    """Return a mean over the whole batch as it is."""
    return value


def cosine_kmeans_loss(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return minus the mean cosine to the nearest prototype.

    Args:
        features: (..., C).
        prototypes: (K, C), of any length.
    """
    return -(F.normalize(features, dim=-1) @ F.normalize(prototypes, dim=-1).T).amax(-1).mean()


def mode_assignment(mask_ids: Tensor, classes: Tensor, count: int) -> Tensor:
    """E-step: give every mask the most frequent class of its pixels.

    Args:
        mask_ids: (B, H, W) integers; -1 where there is no mask. Ids count per image.
        classes: (B, H, W) integers in [0, count).
        count: number of classes K.

    Returns:
        (B, H, W) int64: the class of each pixel's mask (ties to the lowest class), -1 where there is no mask.
    """
    ids = mask_ids.long()
    covered = ids >= 0
    if not bool(covered.any()):
        return torch.full_like(ids, VOID)
    most = int(ids.max()) + 1
    image = torch.arange(len(ids), device=ids.device)[:, None, None]
    mask = image * most + ids
    votes = torch.bincount((mask * count + classes)[covered], minlength=len(ids) * most * count)
    mode = votes.view(-1, count).argmax(1)
    return torch.where(covered, mode[mask.clamp_min(0)], VOID)


def class_weights(logits: Tensor, gamma: float, average: Average = same) -> Tensor:
    """Return (1 - mean softmax probability of the class over the batch) ** gamma, (K,), without gradient.

    Args:
        logits: (B, K, H, W).
        gamma: focal exponent.
        average: makes the mean over these images the mean over the batch, of which they may be a share.
    """
    return (1 - average(logits.detach().softmax(1).mean((0, 2, 3)))) ** gamma


def focal_loss(logits: Tensor, labels: Tensor, gamma: float, average: Average = same) -> Tensor:
    """M-step: class-weighted cross-entropy, averaged over all pixels; void ones count as zero.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) int64 in [0, K), or -1 for void.
        gamma: focal exponent.
        average: see `class_weights`.
    """
    weight = class_weights(logits, gamma, average)
    return F.cross_entropy(logits, labels, weight=weight, ignore_index=VOID, reduction="none").mean()
