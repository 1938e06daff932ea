"""The correspondence loss (section 3.2, equations 1-4) and what it draws at random."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_STABLE = 0.8  # most that a code correspondence counts with `stabilize` (STEGO, modules.py)


def derangement(count: int, generator: torch.Generator) -> Tensor:
    """Return a permutation (count,) that leaves nothing in its place, each one equally likely.

    The published code moves fixed points on by one, which can send two images to the same one.
    """
    if count < 2:
        raise ValueError("a single item has no derangement")
    places = torch.arange(count)
    while True:  # a permutation has no fixed point with probability 1/e
        order = torch.randperm(count, generator=generator)
        if not bool((order == places).any()):
            return order


def correspondence(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosines (B, P, Q) between vectors (B, P, C) and (B, Q, C) (equation 1)."""
    return F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).transpose(1, 2)


def centre(cosines: Tensor, mean: Tensor | None = None) -> Tensor:
    """Take from each point's cosines (B, P, Q) their mean over the other image, and give back the overall mean.

    Args:
        cosines: of some images.
        mean: over the whole batch, where they are a share of it.

    Source: section 3.2, spatial centring; the overall mean is that of the whole batch (STEGO, modules.py).
    """
    rows = cosines - cosines.mean(2, keepdim=True)
    return rows - rows.mean() + (cosines.mean() if mean is None else mean)


def correspondence_loss(
    features: Tensor, codes: Tensor, shift: float, *, zero_clamp: bool = True, stabilize: bool = False
) -> Tensor:
    """Return the scalar -mean(S (F - b)) of feature and code correspondences (B, P, Q) (equation 4).

    No gradient reaches the features.
    """
    low, high = (0.0 if zero_clamp else -1.0), (_STABLE if stabilize else 1.0)
    return -(codes.clamp(low, high) * (features.detach() - shift)).mean()
