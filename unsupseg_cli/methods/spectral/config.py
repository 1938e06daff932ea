"""Hyper-parameters of spectral clustering."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from unsupseg_cli.core.config import Config, setting
from unsupseg_cli.core.ports import ANY_MASKS, FEATURES
from unsupseg_cli.methods.declaration import Background, MethodOptions, Needs


class PseudolabelOptions(MethodOptions):
    """Options of ``pseudolabel --method spectral``."""

    clusters: Literal["graph", "diffused", "tokens", "objects", "auto"] = setting(
        "graph",
        "graph: of tokens across images, by its eigenvectors; diffused: k-means of tokens averaged along it; tokens: "
        "k-means; objects: k-means of the masks given, each one thing. auto: the graph, unless tokens tell images "
        "apart; then objects before a background, else diffused.",
    )
    background: Background = setting(
        "none",
        "outside: class 0 is what the masks given leave out; auto: if they are objects, which leave the border free.",
    )
    sample: int = setting(
        16_000, "Most tokens that are clustered, drawn evenly over the images.", ge=10, le=100_000
    )
    draws: int = setting(
        4, "Samples that are clustered; the clusters of greatest modularity are kept.", ge=1, le=100
    )
    neighbors: int = setting(10, "Nearest tokens of other images that each is joined with.", ge=1, le=1000)
    voters: int = setting(20, "Nearest tokens of the sample that decide the class of the others.", ge=1)
    restarts: int = setting(10, "Starts of k-means on the eigenvectors; the best is kept.", ge=1, le=1000)
    iterations: int = setting(50, "Most iterations of k-means.", ge=1, le=10_000)

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of the graph where there is none, with the reason."""
        if self.clusters in ("graph", "diffused", "auto"):
            return {}
        of_graph = ("sample", "draws", "neighbors", "voters")
        return dict.fromkeys(of_graph, f"clusters={self.clusters} takes no graph")

    def needs(self) -> Needs:
        """Return what clustering reads: tokens, and masks of objects where there may be a background."""
        masks = tuple(replace(port, views=True) for port in ANY_MASKS)
        reads_masks = self.background != "none" or self.clusters == "objects"
        reads = (FEATURES, *(masks if reads_masks else ()))
        return Needs(reads=reads, background=self.background)


class TrainOptions(MethodOptions):
    """Options of ``train --method spectral``."""

    steps: int = setting(600, "Optimizer steps.", ge=1, length=True)
    batch: int = setting(16, "Images per step.", ge=1)
    lr: float = setting(3e-3, "AdamW's learning rate at the start; it falls to 0.", gt=0)
    decay: float = setting(1e-2, "AdamW's weight decay.", ge=0)
    confidence: float = setting(
        0.5,
        "Scores are softened to this mean confidence, from chance (0) to as trained (1): a CRF then has more to do, "
        "and no class changes.",
        gt=0,
        le=1,
        source="ours (docs/choices.md)",
    )

    def needs(self) -> Needs:
        """Return what training reads: tokens, and masks with classes."""
        return Needs(reads=(FEATURES, *ANY_MASKS))

    def work(self, images: int) -> float:
        """Return the images that all steps look at."""
        return float(self.steps * min(images, self.batch))
