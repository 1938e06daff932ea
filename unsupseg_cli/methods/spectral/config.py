"""Hyper-parameters of spectral clustering."""

from __future__ import annotations

from unsupseg_cli.core.config import setting
from unsupseg_cli.core.ports import ANY_MASKS, FEATURES
from unsupseg_cli.methods.declaration import MethodOptions, Needs


class PseudolabelOptions(MethodOptions):
    """Options of ``pseudolabel --method spectral``."""

    sample: int = setting(
        8000, "Most tokens that are clustered, drawn evenly over the images.", ge=10, le=100_000
    )
    draws: int = setting(
        4, "Samples that are clustered; the clusters of greatest modularity are kept.", ge=1, le=100
    )
    neighbors: int = setting(10, "Nearest tokens of other images that each is joined with.", ge=1, le=1000)
    voters: int = setting(20, "Nearest tokens of the sample that decide the class of the others.", ge=1)
    restarts: int = setting(10, "Starts of k-means on the eigenvectors; the best is kept.", ge=1, le=1000)
    iterations: int = setting(50, "Most iterations of k-means.", ge=1, le=10_000)


class TrainOptions(MethodOptions):
    """Options of ``train --method spectral``."""

    steps: int = setting(600, "Optimizer steps.", ge=1, length=True)
    batch: int = setting(16, "Images per step.", ge=1)
    lr: float = setting(3e-3, "AdamW's learning rate at the start; it falls to 0.", gt=0)
    decay: float = setting(1e-2, "AdamW's weight decay.", ge=0)

    def needs(self) -> Needs:
        """Return what training reads: tokens, and masks with classes."""
        return Needs(reads=(FEATURES, *ANY_MASKS))

    def work(self, images: int) -> float:
        """Return the images that all steps look at."""
        return float(self.steps * min(images, self.batch))
