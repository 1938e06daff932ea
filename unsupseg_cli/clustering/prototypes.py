"""Prototypes: k-means by gradient descent on the mean cosine to the nearest centre."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """R sets of K learnable directions, trained side by side; a token belongs to the one of largest cosine.

    Source: the cluster probe of STEGO (Hamilton et al., ICLR 2022, section 3.3 and published code), which has
    one set.

    Args:
        starts: (R, K, C), the first directions, of any length.
    """

    def __init__(self, starts: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(starts)

    def losses(self, tokens: Tensor) -> Tensor:
        """Return -mean(max cosine) of every set, (R,) in [-1, 1], for unit tokens (n, C)."""
        cosine = torch.einsum("nc,rkc->rnk", tokens, F.normalize(self.weight, dim=-1))
        return -cosine.amax(-1).mean(-1)
