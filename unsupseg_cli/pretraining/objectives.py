"""What the encoder learns from: agreement of views, globally and at corresponding places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def projection(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return a two-layer projection head with batch norm (SimCLR, Sec. 2; MoCo v3, Sec. 4)."""
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def info_nce(a: Tensor, b: Tensor, temperature: float, group: Tensor | None = None) -> Tensor:
    """Return the symmetric InfoNCE loss of pairs (N,D), (N,D); row i of both show the same thing.

    With ``group`` (N,) the other rows of the same group (points of one image) are no negatives, since
    they often show the same stuff. Source: SimCLR, Eq. 1 with the cross-view terms only (MoCo v3, Eq. 1).
    """
    a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
    logits = a @ b.T / temperature
    if group is not None:
        same = group[:, None] == group[None]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, float("-inf"))
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class Contrastive(nn.Module):
    """Global and dense InfoNCE between two views."""

    def __init__(self, dim: int, *, hidden: int, out: int, temperature: float, weights: tuple[float, float]) -> None:
        super().__init__()
        self.temperature = temperature
        self.global_weight, self.dense_weight = weights
        self.global_head = projection(dim, hidden, out)
        self.dense_head = projection(dim, hidden, out)

    def forward(self, summaries: tuple[Tensor, Tensor], points: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the losses of two views: ``total``, ``global``, ``dense``.

        Args:
            summaries: (B,C) of each view.
            points: (B,P,C) tokens of each view at corresponding places.
        """
        both = self.global_head(torch.cat(summaries))
        whole = info_nce(*both.chunk(2), self.temperature)
        count, per_image, _ = points[0].shape
        group = torch.arange(count, device=both.device).repeat_interleave(per_image)
        dense_both = self.dense_head(torch.cat(points).flatten(0, 1))
        dense = info_nce(*dense_both.chunk(2), self.temperature, group)
        total = self.global_weight * whole + self.dense_weight * dense
        return {"total": total, "global": whole, "dense": dense}
