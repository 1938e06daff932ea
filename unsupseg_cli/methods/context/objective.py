"""What cells of two views and their guidance say against each other, and the centroids that move along."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DEAD, SWALLOWING = 0.02, 0.5
"""A cluster is dead below this over K of all cells, and swallows the rest above this share; ours."""
_SHARES_MOMENTUM = 0.9
_SPLIT = 0.05  # length of the noise that makes two centroids of one


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


def assign(scores: Tensor, shares: Tensor, balance: float) -> Tensor:
    """Return the cluster of each cell (B, h, w), by scores less how much more than its part a cluster has.

    Args:
        scores: (B, K, h, w).
        shares: of the clusters in all cells of late, (K,).
        balance: 0: scores alone; 1: as if all clusters had been equally frequent.
    """
    excess = (shares * len(shares)).clamp_min(1e-3).log()
    return (scores - balance * excess[:, None, None]).argmax(1)


@dataclass
class OnlineCentroids:
    """Centroids (K, C) of unit length that follow the means of their cells; none dies, and what swallows is counted.

    ``shares`` (K,) of the cells are moving means; a dead cluster takes half of the largest one, by the noise ``draw``.

    Attributes:
        weight: the centroids, changed in place.
        momentum: of the centroids, each step.
        reseeded: clusters that died and began anew, so far.
        swallowing: steps in which a cluster had more than `SWALLOWING` of all cells.
    """

    weight: Tensor
    momentum: float
    shares: Tensor = field(init=False)
    reseeded: int = 0
    swallowing: int = 0

    def __post_init__(self) -> None:
        self.shares = torch.full_like(self.weight[:, 0], 1 / len(self.weight))

    @torch.no_grad()
    def update(self, sums: Tensor, counts: Tensor, draw: torch.Generator) -> None:
        """Move towards the cells of a step.

        Args:
            sums: of the embeddings of each cluster's cells, (K, C).
            counts: of these cells, (K,), in the same measure.
            draw: gives the noise, on the CPU.
        """
        means = F.normalize(sums, dim=-1)
        moved = F.normalize(self.momentum * self.weight + (1 - self.momentum) * means, dim=-1)
        self.weight.copy_(torch.where(counts[:, None] > 0, moved, self.weight))
        self.shares = _SHARES_MOMENTUM * self.shares + (1 - _SHARES_MOMENTUM) * counts / counts.sum()
        self.swallowing += int(self.shares.max() > SWALLOWING)
        for cluster in (self.shares < DEAD / len(self.shares)).nonzero()[:, 0].tolist():
            largest = int(self.shares.argmax())
            noise = F.normalize(torch.randn(self.weight.shape[1], generator=draw), dim=0)
            noise = _SPLIT * noise.to(self.weight)
            self.weight[cluster] = F.normalize(self.weight[largest] + noise, dim=0)
            self.weight[largest] = F.normalize(self.weight[largest] - noise, dim=0)
            self.shares[[cluster, largest]] = self.shares[largest] / 2
            self.reseeded += 1

    def state(self) -> dict[str, Any]:
        """Return what goes on beside the centroids."""
        return {"shares": self.shares, "reseeded": self.reseeded, "swallowing": self.swallowing}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` returned."""
        self.shares = state["shares"].to(self.weight)
        self.reseeded, self.swallowing = int(state["reseeded"]), int(state["swallowing"])


def sums_of(embeddings: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the sums (K, C) of the embeddings of each cluster's cells, and the number of these (K,).

    Args:
        embeddings: (B, C, h, w).
        classes: (B, h, w).
        count: K.
    """
    members = F.one_hot(classes.flatten(), count).to(embeddings.dtype)
    return members.T @ embeddings.movedim(1, -1).flatten(0, 2), members.sum(0)
