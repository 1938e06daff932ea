"""Targets and losses of the mask transformer (published code, models/loss)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.core.labels import VOID


def targets(
    maps: Tensor, background: bool, level: float, teacher: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the class of each patch, and whether it counts for the loss of undecided patches.

    Args:
        maps: (B, K, h, w) of the concepts, not negative.
        background: whether class 0 is background and the concepts follow.
        level: maps below it are background.
        teacher: scores (B, K or K + 1, h, w) of the teacher, whose probabilities count as much as the maps.

    Returns:
        (B, h, w) int64, -1 where no concept is open and there is no background; (B, h, w) bool.
    """
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    shares = (maps - low) / (high - low).clamp_min(1e-6)
    highest = shares.amax(1, keepdim=True)
    decided = highest[:, 0] > level if background else torch.ones_like(highest[:, 0], dtype=torch.bool)
    if background:
        shares = torch.cat([(level - highest).relu(), shares], 1)
    if teacher is not None:
        shares = 0.5 * shares + 0.5 * teacher.softmax(1)
    classes = shares.argmax(1)
    if not background:
        classes = torch.where(maps.amax(1) > 0, classes, VOID)
    return classes, decided


def category_loss(scores: Tensor, classes: Tensor, permutation: Tensor, negative: float) -> Tensor:
    """Return the cross-entropy (B,) to the classes less ``negative`` times that to permuted ones; void counts 0.

    Args:
        scores: (B, K, h, w).
        classes: (B, h, w) int64, -1 for void.
        permutation: (K,) int64, the negative class of each class.
        negative: weight alpha of the negative classes.
    """
    loss = F.cross_entropy(scores, classes, ignore_index=VOID, reduction="none")
    if negative:
        other = torch.where(classes >= 0, permutation[classes.clamp_min(0)], VOID)
        loss = loss - negative * F.cross_entropy(scores, other, ignore_index=VOID, reduction="none")
    return loss.mean((1, 2))


def uncertainty_loss(scores: Tensor, decided: Tensor, background: bool) -> Tensor:
    """Return 1 less the lead of the most probable class over the second, (B,); patches that do not count are 0.

    Args:
        scores: (B, K, h, w).
        decided: (B, h, w) bool, which patches count.
        background: whether class 0 is background, which takes no part.
    """
    best = scores[:, int(background) :].softmax(1).topk(2, dim=1).values
    return ((1 - best[:, 0] + best[:, 1]) * decided).mean((1, 2))


def separation_loss(class_tokens: Tensor) -> Tensor:
    """Return the mean of 1 + cosine over all pairs of different class tokens, (B,).

    Args:
        class_tokens: (B, K, C), of length 1.
    """
    count = class_tokens.shape[1]
    cosines = class_tokens @ class_tokens.transpose(1, 2)
    pairs = torch.triu_indices(count, count, 1, device=cosines.device)
    return (1 + cosines[:, pairs[0], pairs[1]]).mean(1)
