"""What the CLS token of a block comes from: its row of the attention, the values, and the way from there on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.models.backbone import DTYPES, Backbone


@dataclass(frozen=True)
class ClassRow:
    """The CLS row of a block's attention, of some images.

    ``attention`` (B, heads, P) are the weights of the patches, after the softmax over all tokens; ``values``
    (B, heads, P, C / heads) what they weigh; ``others`` (B, C) what the CLS token and the registers add to their sum,
    heads side by side; ``before`` (B, C) the CLS token that enters the block.
    """

    attention: Tensor
    values: Tensor
    others: Tensor
    before: Tensor
    backbone: Backbone

    def mixed(self) -> Tensor:
        """Return the weighted sum of the values of all tokens, heads side by side: (B, C)."""
        return self.others + torch.einsum("bhp,bhpd->bhd", self.attention, self.values).flatten(1)

    def class_token(self, mixed: Tensor) -> Tensor:
        """Return the CLS token as `extract` keeps it, (B, C) or (B, K, C), of sums of values of that shape."""
        vit = self.backbone.vit
        block: Any = vit.blocks[self.backbone.layer]
        before = self.before if mixed.ndim == 2 else self.before[:, None]
        attention: Any = block.attn
        mixed = attention.norm(mixed) if hasattr(attention, "norm") else mixed
        token = before + block.ls1(attention.proj(mixed))
        token = token + block.ls2(block.mlp(block.norm2(token)))
        normed: Tensor = vit.norm(token) if self.backbone.has_norm else token
        return normed

    def under(self, shares: Tensor) -> Tensor:
        """Return the sums of values (B, M, C) where, of the patches, only those under each of M boxes are attended to.

        The CLS token and the registers are attended to as always; the weights add up to 1 again.

        Args:
            shares: (B, M, P), how much of each patch lies under a box, from 0 to 1.
        """
        values = self.values * self.attention[..., None]
        weights = self.attention.transpose(1, 2)  # (B, P, heads)
        total = 1 - weights.sum(1, keepdim=True) + shares @ weights  # (B, M, heads)
        sums = self.others[:, None] + shares @ values.transpose(1, 2).flatten(2)
        return (sums.view(*total.shape, -1) / total[..., None]).flatten(2)

    def gradients(self, concepts: Tensor) -> Tensor:
        """Return the gradients (B, K, P) of 1 - cos(CLS, concept) with respect to the attention to each patch.

        Mean over the heads. Of all tokens the attention of this row moves the CLS token alone, through the sum of
        values: dL/dA[h, p] = v[h, p] . dL/do[h]. So K gradients go through one token each, none through the network.

        Args:
            concepts: (K, C), compared with the CLS token.
        """
        with torch.enable_grad():
            mixed = self.mixed()[:, None].repeat(1, len(concepts), 1).requires_grad_()
            loss = 1 - F.cosine_similarity(self.class_token(mixed), concepts[None], dim=-1)
            (gradient,) = torch.autograd.grad(loss.sum(), mixed)
        values = self.values.movedim(1, 2).flatten(2)  # (B, P, C)
        return gradient @ values.mT / self.values.shape[1]


@torch.no_grad()
def class_row(backbone: Backbone, images: Tensor) -> ClassRow:
    """Run images through a backbone up to its chosen block and return the CLS row of that.

    Args:
        backbone: with a CLS token and plain attention.
        images: normalised, (B, 3, H, W), sides whole patches.

    Raises:
        UsageError: the backbone has no CLS token, or a block of another kind.
    """
    block: Any = backbone.vit.blocks[backbone.layer]
    attention = backbone.require_plain_attention()
    if getattr(backbone.vit, "cls_token", None) is None:
        raise UsageError(
            f"The backbone '{backbone.name}' has no CLS token, whose attention is needed here; ViTs of DINO, DINOv2 "
            "and `tiny` have one (`unsupseg backbones list`)."
        )
    if getattr(attention, "gate", None) is not None or not hasattr(block, "ls2"):
        raise UsageError(
            f"The blocks of the backbone '{backbone.name}' are of another kind than a plain ViT's, which this needs."
        )
    dtype = DTYPES[backbone.precision]
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        tokens = backbone.tokens_before(images)
    tokens = tokens.float()
    batch, count, channels = tokens.shape
    heads, prefix = attention.num_heads, backbone.prefix_tokens
    parts = attention.qkv(block.norm1(tokens)).view(batch, count, 3, heads, channels // heads)
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query[:, :, :1]), attention.k_norm(key)
    weights = (query @ key.mT * attention.scale).softmax(-1)[:, :, 0]  # (B, heads, N)
    others = torch.einsum("bhn,bhnd->bhd", weights[..., :prefix], value[:, :, :prefix]).flatten(1)
    return ClassRow(weights[..., prefix:], value[:, :, prefix:], others, tokens[:, 0], backbone)
