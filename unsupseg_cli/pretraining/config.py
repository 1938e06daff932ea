"""Every choice of a pretraining run, with bounds and source. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.errors import UsageError, did_you_mean

Architecture = dict[str, object]

# ViT-Tiny and ViT-Small: DeiT (Touvron et al. 2021) Table 1; the published models have 12 blocks.
# Convolutional stems in place of the patch projection: Xiao et al. 2021 "Early Convolutions Help
# Transformers See Better"; they learn from far fewer images. Without position embedding the features
# cannot encode where in the crop a patch lies.
_TINY: Architecture = {"embed_dim": 192, "depth": 12, "num_heads": 3, "pos_embed": "learn"}
_SMALL: Architecture = {"embed_dim": 384, "depth": 12, "num_heads": 6, "pos_embed": "learn"}
_STEM8: Architecture = {"channels": [32, 32, 64, 64, 128, 128, 192], "stride": [2, 1, 2, 1, 2, 1, 1]}
_STEM16: Architecture = {"channels": [24, 48, 96, 192, 192], "stride": [2, 2, 2, 2, 1]}

ARCHITECTURES: dict[str, Architecture] = {
    "vit_tiny_patch16": {**_TINY, "patch_size": 16},
    "vit_tiny_patch8": {**_TINY, "patch_size": 8},
    "vit_small_patch16": {**_SMALL, "patch_size": 16},
    "vit_small_patch8": {**_SMALL, "patch_size": 8},
    "vit_tiny_conv16": {**_TINY, "patch_size": 16, "depth": 6, "pos_embed": "none", "stem": _STEM16},
    "vit_tiny_conv8": {**_TINY, "patch_size": 8, "depth": 6, "pos_embed": "none", "stem": _STEM8},
}


def architecture(name: str) -> Architecture:
    """Return the keyword arguments of the encoder called ``name``; UsageError for an unknown name."""
    if name not in ARCHITECTURES:
        raise UsageError(f"Unknown architecture '{name}'{did_you_mean(name, ARCHITECTURES)}")
    return dict(ARCHITECTURES[name])


class PretrainConfig(Config):
    """Settings of ``pretrain``."""

    arch: str = setting("vit_tiny_conv8", "encoder to train")
    objective: Literal["contrastive", "dino"] = setting("contrastive", "what the encoder learns from")
    seed: int = setting(0, "seed of weights, batches and augmentations", ge=0)
    steps: int = setting(4000, "optimiser steps", ge=1)
    batch: int = setting(128, "images per step", ge=2)
    accumulate: int = setting(1, "batches per optimiser step", ge=1)

    size: int = setting(64, "side of the global crops at the start, in pixels", ge=16)
    final_size: int = setting(96, "side of the global crops at the end, in pixels", ge=16)
    final_from: float = setting(0.75, "fraction of the run after which final_size is used", ge=0, le=1)
    crop_scale: tuple[float, float] = setting(
        (0.2, 1.0), "area of a global crop as a fraction of the image", source="SimCLR, App. A (0.08 there)"
    )
    local_crops: int = setting(0, "small extra crops per image", ge=0, source="DINO, Sec. 3 (8 there)")
    local_scale: tuple[float, float] = setting(
        (0.05, 0.25), "area of a local crop as a fraction of the image", source="DINO, App. (0.05-0.25)"
    )
    jitter: float = setting(0.4, "strength of the colour jitter", ge=0, le=1, source="SimCLR, App. A (0.8-1)")
    grayscale: float = setting(0.1, "probability of a grey view", ge=0, le=1, source="SimCLR, App. A (0.2)")
    blur: float = setting(0.3, "probability of a blurred view", ge=0, le=1, source="SimCLR, App. A (0.5)")

    learning_rate: float = setting(1e-3, "peak learning rate of AdamW", gt=0)
    final_learning_rate: float = setting(1e-5, "learning rate at the end", ge=0)
    warmup: float = setting(0.03, "fraction of the run with rising learning rate", ge=0, lt=1)
    weight_decay: float = setting(0.05, "decay of weight matrices", ge=0, source="DINO, Sec. 4 (0.04-0.4)")
    clip: float = setting(3.0, "largest gradient norm", gt=0, source="DINO, published code (3.0)")
    ema: float = setting(0.996, "momentum of the averaged weights", ge=0, lt=1, source="DINO, Sec. 3 (0.996)")

    head_hidden: int = setting(512, "width of the projection heads", ge=8)
    head_dim: int = setting(128, "dimension of the contrastive space", ge=4, source="SimCLR, Sec. 2 (128)")
    temperature: float = setting(0.2, "InfoNCE temperature", gt=0, source="MoCo v3, Sec. 5 (0.2)")
    dense_weight: float = setting(1.0, "weight of the dense loss beside the global one", ge=0)
    global_weight: float = setting(1.0, "weight of the global loss", ge=0)
    points: int = setting(16, "corresponding points per image in the dense loss", ge=1)

    precision: Literal["bf16", "fp32"] = setting("bf16", "arithmetic of the forward pass")
    device: str = execution("cpu", "torch device")

    @model_validator(mode="after")
    def _check(self) -> PretrainConfig:
        architecture(self.arch)
        for low, high in (self.crop_scale, self.local_scale):
            if not 0 < low <= high <= 1:
                raise ValueError(f"crop areas must satisfy 0 < low <= high <= 1, found {low}, {high}")
        return self
