"""Decoders over patch tokens: two small convolutions, and a mask transformer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.models.dropout import Rows, shared_dropout
from unsupseg_cli.models.heads import DenseNetwork, register_head
from unsupseg_cli.models.operators import require_operators

require_operators()
from timm.models.vision_transformer import Block  # noqa: E402

BLOCKS, HEAD_DIM = 2, 64  # of the mask transformer (TransFGU, published code, decoder.py)


@register_head("maskdistill-decoder")
class ConvolutionDecoder(DenseNetwork):
    """Two small convolutions over normalised tokens; no statistics of a batch.

    Args:
        classes: number of classes K.
        dim: channels C of a token.
        width: hidden channels.
    """

    reads = ("patch",)

    def __init__(self, classes: int, dim: int, width: int = 128) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.Sequential(
            nn.Conv2d(dim, width, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.GELU(),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, arrays: dict[str, Tensor]) -> Tensor:
        """Return scores (B, K, h, w) of tokens ``patch`` (B, h, w, C)."""
        scores: Tensor = self.layers(self.norm(arrays["patch"]).movedim(-1, 1))
        return scores


class SharedDropout(nn.Module):
    """Dropout that is drawn for the images of all processes, of which this one has ``rows`` of so many."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.rows: Rows | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Return values (B, ...), some of them 0 and the others scaled up."""
        return shared_dropout(values, self.probability, self.rows) if self.training else values


@register_head("transfgu")
class MaskTransformer(DenseNetwork):
    """Patch tokens (B, h, w, C) -> scores (B, K, h, w) by K learnt class tokens (published code, decoder.py).

    Args:
        classes: K.
        dim: channels C of a token.
        dropout: in training.
    """

    reads = ("patch",)

    def __init__(self, classes: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        heads = next(heads for heads in range(max(1, dim // HEAD_DIM), 0, -1) if dim % heads == 0)
        self.project = nn.Linear(dim, dim)
        # One unit vector of K * C numbers, as the published start is: each token has a norm of about 1 / sqrt(K).
        self.tokens = nn.Parameter(F.normalize(torch.randn(classes * dim), dim=0).view(1, classes, dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, qkv_bias=False, norm_layer=nn.LayerNorm) for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(dim)
        self.patch_projection = nn.Linear(dim, dim, bias=False)
        self.class_projection = nn.Linear(dim, dim, bias=False)
        self.mask_norm = nn.LayerNorm(classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for projection in (self.patch_projection, self.class_projection):
            nn.init.normal_(projection.weight, std=dim**-0.5)
        self._set_dropout(dropout)
        self.train()

    def _set_dropout(self, probability: float) -> None:
        self.dropouts: list[SharedDropout] = []
        for block in self.blocks:
            for part, name in (
                (block.attn, "attn_drop"),
                (block.attn, "proj_drop"),
                (block.mlp, "drop1"),
                (block.mlp, "drop2"),
            ):
                shared = SharedDropout(probability)
                setattr(part, name, shared)
                self.dropouts.append(shared)

    def train(self, mode: bool = True) -> MaskTransformer:
        """Set the mode; attention is fused only where none of it is dropped."""
        super().train(mode)
        for block in self.blocks:
            attention: Any = block.attn  # torch types attributes as Tensor | Module
            attention.fused_attn = not mode
        return self

    def forward(self, arrays: dict[str, Tensor]) -> Tensor:
        """Return scores (B, K, h, w) before the softmax."""
        return self.decode(arrays["patch"])[0]

    def decode(self, patch: Tensor, rows: Rows | None = None) -> tuple[Tensor, Tensor]:
        """Return scores (B, K, h, w), and the class tokens (B, K, C) of each image, of length 1.

        Args:
            patch: (B, h, w, C).
            rows: which images of a batch they are and how many that has, where other processes have the others.
        """
        for dropout in self.dropouts:
            dropout.rows = rows
        count, height, width, _ = patch.shape
        classes = self.tokens.shape[1]
        tokens = torch.cat([self.tokens.expand(count, -1, -1), self.project(patch.flatten(1, 2))], 1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        class_tokens = F.normalize(self.class_projection(tokens[:, :classes]), dim=-1)
        patches = F.normalize(self.patch_projection(tokens[:, classes:]), dim=-1)
        masks = self.mask_norm(patches @ class_tokens.transpose(1, 2))
        return masks.movedim(-1, 1).reshape(count, classes, height, width), class_tokens
