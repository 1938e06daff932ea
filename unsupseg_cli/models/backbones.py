"""The backbones by name: one row each. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
TINY = WEIGHTS / "tiny.safetensors"


@dataclass(frozen=True)
class BackboneRow:
    """One backbone.

    ``timm`` is the architecture in timm, ``tag`` its weights there (empty: none on the hub); ``size`` is the
    image side the position embeddings were trained for; ``file`` is the name of the original checkpoint.
    """

    timm: str
    tag: str
    patch_size: int
    dim: int
    size: int
    description: str
    file: str = ""
    licence: str = ""
    offset: float = 0.0
    antialias: bool = False


# The original code interpolates position embeddings bicubically by a scale factor to which 0.1 patch is added
# (facebookresearch/dino issue 8); DINOv2 with registers interpolates to the exact size with antialiasing.
_SCALE_OFFSET = 0.1


def _dino(size: str, patch: int, dim: int, file: str, tag: str = "dino", note: str = "") -> BackboneRow:
    name = f"vit_{size}_patch{patch}_224"
    text = f"DINO ViT-{size[0].upper()}/{patch}{note} (Caron et al., ICCV 2021)"
    return BackboneRow(name, tag, patch, dim, 224, text, file, "Apache-2.0", _SCALE_OFFSET)


def _dinov2(size: str, dim: int, registers: bool = False) -> BackboneRow:
    reg = "_reg4" if registers else ""
    text = f"DINOv2 ViT-{size[0].upper()}/14{' with registers' if registers else ''} (Oquab et al., 2023)"
    return BackboneRow(
        timm=f"vit_{size}_patch14{reg}_dinov2",
        tag="lvd142m",
        patch_size=14,
        dim=dim,
        size=518,
        description=text,
        file=f"dinov2_vit{size[0]}14{reg}_pretrain.pth",
        licence="Apache-2.0",
        offset=0.0 if registers else _SCALE_OFFSET,
        antialias=registers,
    )


def _dinov3(name: str, dim: int, tag: str = "lvd1689m") -> BackboneRow:
    letter = name.split("_")[0][0].upper()
    return BackboneRow(
        timm=f"vit_{name}_patch16_dinov3",
        tag=tag,
        patch_size=16,
        dim=dim,
        size=256,
        description=f"DINOv3 ViT-{letter}/16 (Siméoni et al., 2025)",
        licence="DINOv3 licence; access on request",
    )


ALIASES: dict[str, BackboneRow] = {
    "tiny": BackboneRow(
        "",
        "",
        8,
        192,
        96,
        "Small self-supervised ViT that ships with this tool",
        "tiny.safetensors",
        "Apache-2.0",
    ),
    "untrained": BackboneRow(
        "vit_tiny_patch16_224", "", 16, 192, 224, "ViT-T/16 with random weights: shows the pipeline only"
    ),
    "dino_vits8": _dino("small", 8, 384, "dino_deitsmall8_pretrain.pth"),
    "dino_vits8_300ep": _dino(
        "small",
        8,
        384,
        "dino_deitsmall8_300ep_pretrain.pth",
        "",
        ", 300 epochs: STEGO's weights, from a file only",
    ),
    "dino_vits16": _dino("small", 16, 384, "dino_deitsmall16_pretrain.pth"),
    "dino_vitb8": _dino("base", 8, 768, "dino_vitbase8_pretrain.pth"),
    "dino_vitb16": _dino("base", 16, 768, "dino_vitbase16_pretrain.pth"),
    "dinov2_vits14": _dinov2("small", 384),
    "dinov2_vitb14": _dinov2("base", 768),
    "dinov2_vitl14": _dinov2("large", 1024),
    "dinov2_vitg14": _dinov2("giant", 1536),
    "dinov2_vits14_reg": _dinov2("small", 384, registers=True),
    "dinov2_vitb14_reg": _dinov2("base", 768, registers=True),
    "dinov2_vitl14_reg": _dinov2("large", 1024, registers=True),
    "dinov2_vitg14_reg": _dinov2("giant", 1536, registers=True),
    "dinov3_vits16": _dinov3("small", 384),
    "dinov3_vitb16": _dinov3("base", 768),
    "dinov3_vitl16": _dinov3("large", 1024),
}


def default_backbone() -> str:
    """Return ``tiny`` once its weights ship with the package, else ``untrained``."""
    return "tiny" if TINY.exists() else "untrained"
