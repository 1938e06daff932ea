"""Hyper-parameters of STEGO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import field_validator

from unsupseg_cli.core.config import Config, setting
from unsupseg_cli.core.ports import FEATURES, GRAPH
from unsupseg_cli.methods.declaration import MethodOptions, Needs

_YAML = "STEGO, train_config.yml"

Three = tuple[float, float, float]


class TrainOptions(MethodOptions):
    """Options of ``train --method stego``; three numbers stand for pairs with itself, kNN and random images."""

    steps: int = setting(5000, "Optimizer steps.", ge=1, length=True, source=f"{_YAML}: max_steps")
    batch: int = setting(16, "Images per step.", ge=2, source=f"{_YAML}: batch_size")
    codes: int = setting(70, "Channels of a code.", ge=1, le=4096, source=f"{_YAML}: dim")
    lr: float = setting(5e-4, "Adam's learning rate of the head.", gt=0, source=f"{_YAML}: lr")
    probe_lr: float = setting(
        5e-3, "Adam's learning rate of the probe.", gt=0, source="STEGO, train_segmentation.py"
    )
    dropout: float = setting(
        0.1, "Probability that a channel of an image is dropped.", ge=0, lt=1, source="STEGO, modules.py"
    )
    feature_samples: int = setting(
        11, "Points per image are the square of this.", ge=1, le=128, source=f"{_YAML}: feature_samples"
    )
    neg_samples: int = setting(
        5, "Random images that each image is compared with.", ge=1, le=100, source=f"{_YAML}: neg_samples"
    )
    num_neighbors: int = setting(
        7, "Nearest neighbours that the kNN image is drawn from.", ge=1, source=f"{_YAML}: num_neighbors"
    )
    pointwise: bool = setting(
        True, "Centre the feature correspondences spatially.", source=f"{_YAML}: pointwise; section 3.2"
    )
    zero_clamp: bool = setting(
        True, "Clamp code correspondences below 0.", source=f"{_YAML}: zero_clamp; equation 4"
    )
    stabilize: bool = setting(
        False, "Clamp code correspondences above 0.8.", source=f"{_YAML}: stabalize (so spelt)"
    )
    weights: Three = setting(
        (0.67, 0.25, 0.63), "Weights of the three terms.", source=f"{_YAML}: the rows of ViT-S"
    )
    shifts: Literal["auto"] | Three = setting(
        "auto", "The shifts b of the three terms in [-1, 1], or auto: measured.", source="auto: ours"
    )
    restarts: int = setting(
        8,
        "Cluster probes trained beside the head from different starts, and as many fitted anew; the lowest loss wins.",
        ge=1,
        le=1000,
        source="ours (docs/deviations.md); STEGO, train_segmentation.py: 1",
    )
    refit: bool = setting(
        True,
        "Fit cluster probes anew on the final codes; else only those trained beside the head are there.",
        source="ours (docs/deviations.md); STEGO, train_segmentation.py: no",
    )
    sample: int = setting(50_000, "Codes that the probe's new starts are fitted on.", ge=1, source="ours")
    alpha: float = setting(
        2.0, "Sharpness of the class scores: logits = alpha * cosine.", gt=0, source="STEGO, eval: alpha 2"
    )

    @field_validator("weights", "shifts", mode="before")
    @classmethod
    def _three(cls, value: str | Sequence[float]) -> object:
        """Read ``0.1,0.2,0.3`` as three numbers."""
        if value == "auto":
            return value
        parts = value.split(",") if isinstance(value, str) else value
        try:
            numbers = [float(part) for part in parts]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
            raise ValueError("expected three numbers (itself, kNN, random), such as 0.1,0.2,0.5")
        return tuple(numbers)

    @field_validator("weights")
    @classmethod
    def _positive(cls, value: Three) -> Three:
        if min(value) < 0 or max(value) == 0:
            raise ValueError("weights must not be negative, and one must be positive")
        return value

    @field_validator("shifts")
    @classmethod
    def _in_range(cls, value: Literal["auto"] | Three) -> Literal["auto"] | Three:
        if value != "auto" and max(map(abs, value)) > 1:
            raise ValueError("shifts are compared with cosines: expected numbers in [-1, 1]")
        return value

    def needs(self) -> Needs:
        """Return what training reads: tokens and neighbours."""
        return Needs(reads=(FEATURES, GRAPH), network="optional")

    def work(self, images: int) -> float:
        """Return the images that all steps look at."""
        return float(self.steps * min(images, self.batch))

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of fitting anew where that is not asked for."""
        return {} if self.refit else {"sample": "it is read with refit=true"}

    def channels(self, dim: int) -> int:
        """Return the channels of a code."""
        return self.codes
