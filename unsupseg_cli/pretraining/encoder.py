"""Build the encoder that an architecture describes: a timm vision transformer with an optional conv stem."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unsupseg_cli.models import torchvision_ops  # noqa: F401  (before timm)
from unsupseg_cli.pretraining.config import Architecture

# Channel statistics of ImageNet, which every timm vision transformer expects.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def build_encoder(arch: Architecture, size: int, seed: int = 0) -> nn.Module:
    """Return an untrained encoder; tokens come from ``tokens``.

    Args:
        arch: embed_dim, depth, num_heads, patch_size, pos_embed and optionally stem (channels, stride).
        size: side in pixels for which position embeddings are made; other sizes are interpolated.
        seed: seed of the weights.
    """
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    kwargs: dict[str, Any] = dict(arch)
    stem = kwargs.pop("stem", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if stem is not None:
            convs = ConvStem(
                depth=len(stem["channels"]), channels=tuple(stem["channels"]), stride=stem["stride"]
            )
            kwargs["embed_layer"] = partial(HybridEmbed, backbone=convs, proj=False)
            kwargs["patch_size"] = 1
        encoder: nn.Module = VisionTransformer(img_size=size, num_classes=0, dynamic_img_size=True, **kwargs)
    for block in encoder.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = False  # on short sequences plain products train a third faster on a CPU
    return encoder


def tokens(encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the CLS token (B,C) and the patch tokens (B,h,w,C), after the final norm.

    ``images`` is (B,3,H,W), normalised with MEAN and STD; the patch size divides H and W.
    """
    out: Tensor = encoder.forward_features(images)  # type: ignore[operator]
    height, width = images.shape[-2:]
    patches = out[:, 1:]
    stride = round((height * width / patches.shape[1]) ** 0.5)
    return out[:, 0], patches.reshape(len(out), height // stride, width // stride, -1)
