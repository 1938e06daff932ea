"""Centroids that move along with what is learnt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DEAD, LEAST_LIMIT = 0.02, 1.5
"""A cluster is dead below the first over K of all cells; its limit is at least the second over K; ours."""
_SHARES_MOMENTUM = 0.9
_SPLIT = 0.05  # length of the noise that makes two centroids of one


@dataclass
class OnlineCentroids:
    """Centroids (K, C) of unit length that follow the means of their cells; none dies, and none swallows the rest.

    A dead cluster takes half of the largest one. One beyond its limit loses in score, more with each step that it stays
    above, less with each below.

    Attributes:
        weight: the centroids, changed in place.
        momentum: of the centroids, each step.
        largest: limit of a cluster's share of all cells.
        shares: of the cells, moving means, (K,).
        handicap: what is taken from the scores, (K,).
        reseeded: clusters that died and began anew, so far.
        swallowing: steps in which a cluster was above its limit.
    """

    weight: Tensor
    momentum: float
    largest: float = 1.0
    shares: Tensor = field(init=False)
    handicap: Tensor = field(init=False)
    reseeded: int = 0
    swallowing: int = 0

    def __post_init__(self) -> None:
        self.shares = torch.full_like(self.weight[:, 0], 1 / len(self.weight))
        self.handicap = torch.zeros_like(self.shares)
        self.limit = max(self.largest, LEAST_LIMIT / len(self.weight))

    def assign(self, scores: Tensor) -> Tensor:
        """Return the cluster of each cell (B, h, w) of scores (B, K, h, w)."""
        return (scores - self.handicap[:, None, None]).argmax(1)

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
        self.swallowing += int(self.shares.max() > self.limit)
        self.handicap = (self.handicap + (self.shares.clamp_min(1e-3) / self.limit).log()).clamp_min(0)
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
        return {
            "shares": self.shares,
            "handicap": self.handicap,
            "reseeded": self.reseeded,
            "swallowing": self.swallowing,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` returned."""
        self.shares, self.handicap = (state[name].to(self.weight) for name in ("shares", "handicap"))
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
