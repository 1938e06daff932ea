"""The segmentation head (section 3.3 and the published code)."""

from __future__ import annotations

from torch import Tensor, nn

from unsupseg_cli.models.dropout import Rows, shared_dropout
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

    def forward(self, tokens: Tensor, rows: Rows | None = None) -> Tensor:
        """Return the codes (B, h, w, D) of tokens (B, h, w, C); ``rows`` as in ``drop``."""
        codes: Tensor = self.linear(self.drop(tokens, rows)) + self.nonlinear(self.drop(tokens, rows))
        return codes

    def drop(self, tokens: Tensor, rows: Rows | None = None) -> Tensor:
        """Return tokens (B, h, w, C) with whole channels of an image set to 0 and the others scaled up.

        Args:
            tokens: of some images.
            rows: see `shared_dropout`.
        """
        if not self.training:
            return tokens
        return shared_dropout(tokens, self.dropout, rows, (1, 1, tokens.shape[3]))
