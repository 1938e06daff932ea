"""The segmentation head (section 3.3 and the published code)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.models.heads import register_head


@register_head("stego")
class StegoHead(nn.Module):
    """Tokens (B, h, w, C) -> codes (B, h, w, D): a linear branch plus a branch with one hidden layer.

    Args:
        dim: channels C of a token.
        codes: channels D of a code.
        dropout: probability that a channel of an image is dropped in training, in each branch on its own.
    """

    def __init__(self, dim: int, codes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.linear = nn.Linear(dim, codes)
        self.nonlinear = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, codes))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the codes (B, h, w, D) of tokens (B, h, w, C)."""
        codes: Tensor = self.linear(self.drop(tokens)) + self.nonlinear(self.drop(tokens))
        return codes

    def drop(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, h, w, C) with whole channels of an image set to 0 and the others scaled up."""
        if not self.training or self.dropout == 0:
            return tokens
        batch, _, _, channels = tokens.shape
        return tokens * F.dropout(tokens.new_ones(batch, 1, 1, channels), self.dropout)
