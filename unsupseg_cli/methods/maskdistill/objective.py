"""The loss of MaskDistill: cross-entropy of the hardest pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.core.labels import VOID


def hard_pixel_loss(scores: Tensor, classes: Tensor, share: float, of_all: bool = False) -> Tensor:
    """Return the mean cross-entropy of the hardest pixels of one image; 0 where no pixel has a class.

    Args:
        scores: (K, H, W) before the softmax.
        classes: (H, W) integers, -1 where there is none.
        share: of the pixels that count, in (0, 1]; at least one counts.
        of_all: whether it is a share of all pixels, at most those with a class, instead of those with one.
    """
    losses = F.cross_entropy(scores[None], classes[None].long(), ignore_index=VOID, reduction="none")[0]
    valid = classes != VOID
    count = int(valid.sum())
    if not count:
        return scores.sum() * 0
    kept = min(count, max(1, int(share * (valid.numel() if of_all else count))))
    return losses[valid].topk(kept).values.mean()
