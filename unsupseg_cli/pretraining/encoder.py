"""The encoder in training: built like every small backbone, run to CLS and patch tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unsupseg_cli.models.vit import build_vit
from unsupseg_cli.pretraining.config import Architecture


def build_encoder(arch: Architecture, size: int, seed: int = 0) -> nn.Module:
    """Return an untrained encoder for training; ``size`` is the side that position embeddings are made for."""
    encoder: Any = build_vit(arch, size, seed)
    for block in encoder.blocks:
        block.attn.fused_attn = False  # on short sequences plain products train a third faster on a CPU
    trained: nn.Module = encoder
    return trained


def tokens(encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the CLS token (B,C) and the patch tokens (B,h,w,C), after the final norm.

    ``images`` is (B,3,H,W), normalised with MEAN and STD; the patch size divides H and W.
    """
    out: Tensor = encoder.forward_features(images)  # type: ignore[operator]
    height, width = images.shape[-2:]
    patches = out[:, 1:]
    side = round((height * width / patches.shape[1]) ** 0.5)
    return out[:, 0], patches.reshape(len(out), height // side, width // side, -1)
