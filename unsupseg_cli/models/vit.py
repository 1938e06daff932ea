"""Small vision transformers described by a few fields, as `pretrain` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from unsupseg_cli.models.operators import require_operators

# Channel statistics of ImageNet, which every timm vision transformer expects.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def build_vit(arch: Mapping[str, Any], size: int, seed: int = 0) -> nn.Module:
    """Return an untrained vision transformer of timm, with an optional convolutional stem.

    Args:
        arch: embed_dim, depth, num_heads, patch_size, and optionally pos_embed and stem (channels, stride).
        size: side in pixels that position embeddings are made for; other sizes are interpolated.
        seed: of the weights; the global generator is left as it was.
    """
    require_operators()
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    fields: dict[str, Any] = dict(arch)
    stem = fields.pop("stem", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if stem is not None:
            channels = tuple(stem["channels"])
            convolutions = ConvStem(depth=len(channels), channels=channels, stride=stem["stride"])
            fields["embed_layer"] = partial(HybridEmbed, backbone=convolutions, proj=False)
            fields["patch_size"] = 1
        model: nn.Module = VisionTransformer(img_size=size, num_classes=0, dynamic_img_size=True, **fields)
    return model
