"""Dropout that does not depend on how a batch is split over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

Rows = tuple[Sequence[int], int]
"""Places of some images in a batch, and the number of images in that."""


def shared_dropout(
    values: Tensor, probability: float, rows: Rows | None, shape: Sequence[int] | None = None
) -> Tensor:
    """Return values (B, ...), some of them 0 and the others scaled up.

    Args:
        values: of some images.
        probability: of a 0.
        rows: which images of a batch they are and how many that has, where other processes have the others: what is
            dropped is drawn for all of them.
        shape: of what is dropped of one image, where it is not each value on its own.
    """
    if probability == 0:
        return values
    chosen, count = rows or (range(len(values)), len(values))
    kept = F.dropout(values.new_ones(count, *(shape or values.shape[1:])), probability)
    return values * kept[list(chosen)]
