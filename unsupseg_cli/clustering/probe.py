"""The cluster probe: k-means by gradient descent on the cosine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClusterProbe(nn.Module):
    """K learnable directions; a code belongs to the one with the largest cosine.

    Source: the cluster probe of STEGO (Hamilton et al., ICLR 2022, published code); its optimizer there is
    Adam with learning rate 5e-3, apart from the one of the codes.

    Args:
        k: number of clusters.
        dim: channels of the codes.
        seed: of the random start.
    """

    def __init__(self, k: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(k, dim, generator=generator))

    @classmethod
    def from_centroids(cls, centroids: Tensor) -> ClusterProbe:
        """Return a probe that starts from centres (K, C), those of spherical k-means say."""
        probe = cls(*centroids.shape).to(centroids.device)
        with torch.no_grad():
            probe.weight.copy_(F.normalize(centroids, dim=-1))
        return probe

    def forward(self, codes: Tensor) -> Tensor:
        """Return the cosine (..., K), in [-1, 1], of codes (..., C) with every direction."""
        return F.normalize(codes, dim=-1) @ F.normalize(self.weight, dim=-1).T

    def loss(self, codes: Tensor) -> Tensor:
        """Return -mean(max cosine) of codes (..., C); no gradient reaches the codes."""
        return -self.forward(codes.detach()).amax(-1).mean()

    def log_probs(self, codes: Tensor, alpha: float = 2.0) -> Tensor:
        """Return log softmax(alpha * cosine) (..., K); STEGO evaluates with alpha 2."""
        return F.log_softmax(alpha * self.forward(codes), dim=-1)
