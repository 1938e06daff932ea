"""Every choice of a pretraining run, with bounds and source. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.errors import UsageError, did_you_mean
from unsupseg_cli.core.options import EventFolder

Architecture = dict[str, Any]

# Widths, heads and depth of ViT-Tiny and ViT-Small: DeiT (Touvron et al. 2021), Table 1.
_TINY: Architecture = {"embed_dim": 192, "depth": 12, "num_heads": 3, "pos_embed": "learn"}
_SMALL: Architecture = {"embed_dim": 384, "depth": 12, "num_heads": 6, "pos_embed": "learn"}
# A stack of 3x3 convolutions in place of the patch projection: Xiao et al. 2021, "Early Convolutions Help
# Transformers See Better". It learns from far fewer images, and the blocks need no position embedding, so
# that a patch cannot encode where in the crop it lies.
_CONV8: Architecture = {
    "depth": 6,
    "pos_embed": "none",
    "stem": {"channels": [32, 32, 64, 64, 128, 128, 192], "stride": [2, 1, 2, 1, 2, 1, 1]},
}
_CONV16: Architecture = {
    "depth": 6,
    "pos_embed": "none",
    "stem": {"channels": [24, 48, 96, 192, 192], "stride": [2, 2, 2, 2, 1]},
}

ARCHITECTURES: dict[str, Architecture] = {
    "vit_tiny_conv8": {**_TINY, "patch_size": 8, **_CONV8},
    "vit_tiny_conv16": {**_TINY, "patch_size": 16, **_CONV16},
    "vit_tiny_patch8": {**_TINY, "patch_size": 8},
    "vit_tiny_patch16": {**_TINY, "patch_size": 16},
    "vit_small_patch8": {**_SMALL, "patch_size": 8},
    "vit_small_patch16": {**_SMALL, "patch_size": 16},
}


def architecture(name: str) -> Architecture:
    """Return the keyword arguments of the encoder called ``name``; UsageError for an unknown name."""
    if name not in ARCHITECTURES:
        raise UsageError(f"Unknown architecture '{name}'{did_you_mean(name, ARCHITECTURES)}")
    return dict(ARCHITECTURES[name])


_OBJECTIVES = {
    "contrastive": ("head_dim", "temperature"),
    "dino": (
        "prototypes",
        "bottleneck",
        "student_temperature",
        "teacher_temperature",
        "centering",
        "center_momentum",
    ),
}
_CLUSTERS = ("cluster_from", "clusters", "cluster_temperature", "cluster_target_temperature")


class PretrainConfig(Config):
    """Settings of ``pretrain``. The defaults made the bundled weights (docs/tiny.md)."""

    images: tuple[Path, ...] = execution((), "Images or folders.", argument=True, also=("--dataset",))
    arch: str = setting("vit_tiny_conv8", "encoder to train")
    objective: Literal["contrastive", "dino"] = setting("contrastive", "what the encoder learns from")
    start: str | None = setting(
        None, "backbone of the same architecture to go on from: tiny, or the id of a `backbone` artifact"
    )
    seed: int = setting(0, "seed of weights, batches and augmentations", ge=0)
    steps: int = setting(2800, "optimiser steps", ge=1)
    hours: float | None = setting(
        None, "train for this long instead of `steps`; the result then depends on the machine's speed", gt=0
    )
    batch: int = setting(128, "images per forward pass, on all devices together", ge=2)
    accumulate: int = setting(1, "forward passes per optimiser step", ge=1)
    devices: int = execution(
        1,
        "GPUs (or CPU processes) that train together: each step's batch is split over them. Under torchrun, which "
        "starts the processes itself, on several machines too, leave it out.",
        ge=1,
    )

    size: int = setting(64, "side of the crops at the start, in pixels", ge=16)
    final_size: int = setting(96, "side of the crops at the end, in pixels", ge=16)
    final_from: float = setting(0.9, "fraction of the run after which final_size is used", ge=0, le=1)
    crop_scale: tuple[float, float] = setting(
        (0.2, 1.0),
        "least and largest area of a crop, as a fraction of the image",
        source="MoCo, published code",
    )
    local_crops: int = setting(
        0, "small extra crops per image (the paper has 8)", ge=0, source="DINO, Sec. 3.1"
    )
    local_size: int = setting(32, "side of the local crops, in pixels", ge=16)
    local_scale: tuple[float, float] = setting(
        (0.05, 0.25), "least and largest area of a local crop", source="DINO, Sec. 3.1 and App. E"
    )
    jitter: float = setting(
        0.4, "strength of the colour jitter (weaker than SimCLR's 0.8: colour helps to tell stuff apart)",
        ge=0, le=1, source="SimCLR, App. A",
    )  # fmt: skip
    grayscale: float = setting(
        0.1, "probability of a grey view (0.2 in the paper)", ge=0, le=1, source="SimCLR, App. A"
    )
    blur: float = setting(
        0.3, "probability of a blurred view (0.5 in the paper)", ge=0, le=1, source="SimCLR, App. A"
    )

    learning_rate: float = setting(1.5e-3, "peak learning rate of AdamW", gt=0)
    final_learning_rate: float = setting(1e-5, "learning rate at the end", ge=0)
    warmup: float = setting(0.03, "fraction of the run with rising learning rate", ge=0, lt=1)
    weight_decay: float = setting(0.05, "decay of the weight matrices", ge=0)
    clip: float = setting(3.0, "largest gradient norm", gt=0, source="DINO, published code")
    ema: float = setting(
        0.98, "momentum of the averaged weights (0.996 in the paper, whose runs are a hundred times longer)",
        ge=0, lt=1, source="DINO, Sec. 3.1",
    )  # fmt: skip

    global_weight: float = setting(1.0, "weight of the loss between whole views", ge=0)
    dense_weight: float = setting(1.0, "weight of the loss between corresponding places", ge=0)
    points: int = setting(16, "corresponding places per image", ge=2)
    cluster_weight: float = setting(
        0.0,
        "weight of a loss that gathers patch tokens around a few prototypes; 0 leaves it out",
        ge=0,
    )
    cluster_from: float = setting(0.45, "fraction of the run after which that loss counts", ge=0, le=1)
    clusters: int = setting(24, "prototypes of that loss", ge=2)
    cluster_temperature: float = setting(
        0.1, "softmax temperature of its guesses", gt=0, source="SwAV, App. A.1"
    )
    cluster_target_temperature: float = setting(
        0.05, "temperature of its Sinkhorn targets", gt=0, source="SwAV, App. A.1"
    )
    head_hidden: int = setting(512, "width of the projection heads", ge=8)

    head_dim: int = setting(128, "dimension of the contrastive space", ge=2, source="SimCLR, Sec. 2.2")
    temperature: float = setting(0.2, "contrastive temperature", gt=0, source="MoCo v2, Sec. 3")

    prototypes: int = setting(
        1024, "outputs of the DINO heads (65536 in the paper)", ge=2, source="DINO, App. C"
    )
    bottleneck: int = setting(
        128, "dimension before the prototypes (256 in the paper)", ge=2, source="DINO, App. C"
    )
    student_temperature: float = setting(
        0.1, "softmax temperature of the student", gt=0, source="DINO, Sec. 3.1"
    )
    teacher_temperature: float = setting(
        0.04, "softmax temperature of the teacher", gt=0, source="DINO, Sec. 3.1"
    )
    centering: Literal["sinkhorn", "mean"] = setting(
        "sinkhorn",
        "how the teacher is kept from one constant output",
        source="DINOv2, Sec. 4 (sinkhorn, from SwAV); DINO, Sec. 3.1 (mean)",
    )
    center_momentum: float = setting(0.9, "momentum of the mean center", ge=0, lt=1, source="DINO, Sec. 3.1")

    probe: str | None = setting(
        None, "labelled data set to score patches on while training: a diagnosis that uses labels"
    )
    probe_root: str | None = execution(None, "where that data set lies")
    precision: Literal["bf16", "fp32"] = setting("bf16", "arithmetic of the forward pass")
    tensorboard: EventFolder = execution(
        None, "also write the losses of this run as TensorBoard events here (extra `tensorboard`)"
    )
    device: str = execution("auto", "auto, cpu, cuda, cuda:1, mps, ...")

    @property
    def images_per_step(self) -> int:
        """Images that one step sees, in all forward passes."""
        return self.batch * self.accumulate

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of the other objective, and of what is left out."""
        unread: dict[str, str] = {}
        for objective, names in _OBJECTIVES.items():
            if objective != self.objective:
                unread |= dict.fromkeys(names, f"it is read with --objective {objective}")
        if self.centering != "mean":
            unread["center_momentum"] = "it is read with --centering mean"
        if not self.local_crops:
            unread |= dict.fromkeys(("local_size", "local_scale"), "there are no --local-crops")
        if not self.cluster_weight:
            unread |= dict.fromkeys(_CLUSTERS, "--cluster-weight is 0")
        if self.hours is not None:
            unread["steps"] = "--hours says how long to train"
        if self.probe is None:
            unread["probe_root"] = "there is no --probe"
        return unread

    @model_validator(mode="after")
    def _check(self) -> PretrainConfig:
        patch = architecture(self.arch)["patch_size"]
        for name, (low, high) in {"crop_scale": self.crop_scale, "local_scale": self.local_scale}.items():
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must satisfy 0 < low <= high <= 1, found {low}, {high}")
        for name in ("size", "final_size", "local_size"):
            if getattr(self, name) % patch:
                raise ValueError(
                    f"{name} must be a multiple of the patch size {patch}, found {getattr(self, name)}"
                )
        if self.global_weight == self.dense_weight == 0:  # clusters alone hold nothing together
            raise ValueError("global_weight and dense_weight are both 0: nothing to learn")
        return self
