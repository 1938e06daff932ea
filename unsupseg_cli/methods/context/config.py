"""Hyper-parameters of context-aware clustering; none is the paper's, whose text is not public."""

from __future__ import annotations

from dataclasses import replace

from unsupseg_cli.core.config import Config, setting
from unsupseg_cli.core.ports import FEATURES, PSEUDOLABELS, REGIONS
from unsupseg_cli.methods.declaration import MethodOptions, Needs

_OURS = "ours"
FINE = 2
"""Cells of guidance and of the embedding along a patch's side, ours: twice as fine as the ViT's tokens."""


class PseudolabelOptions(MethodOptions):
    """Options of ``pseudolabel --method context``."""

    holistic: float = setting(
        1.0,
        "Weight of what the holistic clusters of the pyramid say, beside the patches; 0: nothing.",
        ge=0,
        le=10,
        source=_OURS,
    )
    clusters: float = setting(
        2.0,
        "Holistic clusters of a level over the number of classes; a level has at least 4 views for each.",
        gt=0,
        source=_OURS,
    )
    views: float = setting(
        1.0,
        "Weight of the patches of each view of the finest level, beside those of the image; 0: regions need not keep "
        "patch.",
        ge=0,
        le=100,
        source=_OURS,
    )
    confidence: float = setting(
        0.7,
        "Mean of the highest probability of a patch, which sets the temperature.",
        gt=0,
        lt=1,
        source=_OURS,
    )
    top: int = setting(8, "Classes of a cell whose guidance is kept.", ge=1, source=_OURS)
    restarts: int = setting(
        5, "Runs of k-means from different starts; the lowest inertia is kept.", ge=1, le=1000
    )
    iterations: int = setting(50, "Most Lloyd iterations of a run.", ge=1, le=10_000)
    sample: int = setting(
        200_000, "Most patches that the centres are fitted on, drawn evenly over the images.", ge=1
    )

    def needs(self) -> Needs:
        """Return what guidance is made of: tokens, and a pyramid."""
        return Needs(reads=(FEATURES, replace(REGIONS, layout="pyramid")))

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the number of holistic clusters where they have no weight."""
        return {} if self.holistic else {"clusters": "it is read with holistic above 0"}


class TrainOptions(MethodOptions):
    """Options of ``train --method context``."""

    steps: int = setting(200, "Optimizer steps.", ge=1, length=True, source=_OURS)
    batch: int = setting(8, "Images per step.", ge=1, source=_OURS)
    lr: float = setting(1e-3, "Adam's learning rate, which falls to 0 by a cosine.", gt=0, source=_OURS)
    psg: bool = setting(True, "The pyramid's guidance teaches, beside the clusters themselves.", source=_OURS)
    guidance: float = setting(1.0, "Weight of the guidance beside the clusters.", gt=0, source=_OURS)
    cae: bool = setting(
        True,
        "Embeddings fuse patches with the global token, place and appearance, at half the patch; false: patches alone.",
        source=_OURS,
    )
    width: int = setting(128, "Hidden channels of the embedding.", ge=1, source=_OURS)
    momentum: float = setting(0.99, "Momentum of the centroids, each step.", ge=0, lt=1, source=_OURS)
    balance: float = setting(
        1.0,
        "Weight of how far the classes' shares of a batch are from those of the pseudo-labels; 0: none, and without "
        "guidance the clusters collapse.",
        ge=0,
        source="RIM (Krause et al., NIPS 2010), its class balance towards a prior; the weight is ours",
    )
    largest: float = setting(
        0.4,
        "Share of all cells above which a cluster is damped (1.5 times its part, if that is more); 1: none is.",
        gt=0,
        le=1,
        source=_OURS,
    )
    crop_least: float = setting(
        0.5, "Least side of the crop that is the one view, as a share.", gt=0, le=1, source="PiCIE: 0.5"
    )
    mirror: float = setting(
        0.5, "Probability that it is mirrored.", ge=0, le=1, source="PiCIE: horizontal flips"
    )
    jitter: float = setting(
        0.3,
        "Strength of changes of brightness, contrast and saturation, of each view its own; 0: none.",
        ge=0,
        lt=1,
        source="PiCIE: jitter 0.3",
    )

    def needs(self) -> Needs:
        """Return what training reads: tokens and the guidance; for the CAE also global tokens and pixels."""
        return Needs(
            reads=(FEATURES, replace(PSEUDOLABELS, method="context")),
            arrays=("patch", "cls") if self.cae else ("patch",),
            images=self.cae,
            network="optional",
        )

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the weight of guidance that is off, and the change of pixels that nothing sees."""
        unread = {} if self.psg else {"guidance": "it is read with psg=true"}
        if not self.cae and getattr(stage, "tokens", "live") == "stored":
            unread["jitter"] = "pixels are read with cae=true or --tokens live"
        return unread

    def work(self, images: int) -> float:
        """Return the images that all steps look at."""
        return float(self.steps * min(self.batch, images))

    def channels(self, dim: int) -> int | None:
        """Return None: embeddings are of cells, not of patches."""
        return None
