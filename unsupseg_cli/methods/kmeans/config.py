"""Hyper-parameters of the k-means baseline."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from unsupseg_cli.core.config import setting
from unsupseg_cli.core.ports import FEATURES, Port
from unsupseg_cli.methods.declaration import MethodOptions, Needs


class PseudolabelOptions(MethodOptions):
    """Options of ``pseudolabel --method kmeans``."""

    restarts: int = setting(5, "Runs from different starts; the lowest inertia is kept.", ge=1, le=1000)
    iterations: int = setting(50, "Most Lloyd iterations of a run.", ge=1, le=10_000)
    sample: Annotated[int, Field(ge=1)] | Literal["all"] = setting(
        200_000,
        "Most tokens that the centres are fitted on, drawn evenly over the images: the inertia over all tokens is "
        "higher by about the share classes / sample. all: those of 200,000 are moved by passes over all tokens, which "
        "the processes of --shard, --devices and --executor share.",
    )


class TrainOptions(MethodOptions):
    """Options of ``train --method kmeans``."""

    steps: int = setting(300, "Optimizer steps.", ge=1, length=True)
    batch: int = setting(16, "Images per step.", ge=1, source="STEGO, train_config.yml: batch_size 16")
    lr: float = setting(
        5e-3, "Adam's learning rate.", gt=0, source="STEGO, train_config.yml: cluster probe 5e-3"
    )
    restarts: int = setting(8, "Prototype sets trained side by side; the best is kept.", ge=1, le=1000)
    sample: int = setting(50_000, "Tokens that k-means++ draws the starts from.", ge=1)
    alpha: float = setting(
        2.0, "Sharpness of the class scores: logits = alpha * cosine.", gt=0, source="STEGO, eval: alpha 2"
    )

    def needs(self) -> Needs:
        """Return what training reads: tokens, and the centres of its own pseudo-labels as one of the starts."""
        pseudolabels = Port("pseudolabels", "pseudolabels", optional=True, method="kmeans")
        return Needs(reads=(FEATURES, pseudolabels))

    def work(self, images: int) -> float:
        """Return the images that all steps look at."""
        return float(self.steps * min(images, self.batch))
