"""Prototypes: k-means by gradient descent on the mean cosine to the nearest centre; how sure cosines are."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FINEST, _COARSEST, _HALVINGS = 1e-4, 10.0, 40


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


def temperature(cosines: Tensor, confidence: float) -> float:
    """Return the temperature of a softmax over cosines (n, K) at which the highest probability is in the mean as given.

    Tokens of one backbone differ in cosines of .5, those of another in .05: a fixed temperature fits one of them.

    Args:
        cosines: of some points to the centres.
        confidence: mean of the highest probability, in (0, 1); at most what the sharpest softmax has is reached.
    """
    low, high = np.log(_FINEST), np.log(_COARSEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float((cosines / np.exp(middle)).softmax(1).amax(1).mean()) > confidence:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))
