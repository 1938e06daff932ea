"""Hyper-parameters of TransFGU."""

from __future__ import annotations

from unsupseg_cli.core.config import setting
from unsupseg_cli.core.ports import FEATURES, REGIONS
from unsupseg_cli.methods.declaration import MethodOptions, Needs

_CODE = "TransFGU, published code"


class PseudolabelOptions(MethodOptions):
    """Options of ``pseudolabel --method transfgu``."""

    things: int | None = setting(
        None,
        "Concepts that are clustered from foreground regions, the first ones; stuff are the rest. Default: all "
        "concepts from all regions.",
        ge=0,
        source=f"{_CODE}: COCO-Stuff-27 12, COCO-Stuff-171 80",
    )
    stuff: int | None = setting(
        None,
        "Concepts that are clustered from background regions.",
        ge=0,
        source=f"{_CODE}: COCO-Stuff-27 15, COCO-Stuff-171 91",
    )
    background: bool = setting(
        False,
        "Class 0 is the background, where every map is low; for collections of objects.",
        source=f"{_CODE}: VOC, COCO-80, LIP",
    )
    background_level: float = setting(
        0.1, "The background's map is what maps lack of this.", gt=0, le=1, source=f"{_CODE}: 0.1"
    )
    gradient_scale: float = setting(
        0.125,
        "Factor on the gradients beside the attention.",
        gt=0,
        source=f"{_CODE}: 1 / images at a time, 8 for COCO-Stuff and VOC, 2 for Cityscapes and LIP",
    )
    mass: float = setting(
        0.8,
        "Share of a map's evidence that is kept, that of the patches with most of it.",
        gt=0,
        le=1,
        source=f"{_CODE}: 0.8",
    )
    top: int = setting(
        8, "Concepts whose evidence is stored at each patch.", ge=1, source="ours; all of them"
    )
    restarts: int = setting(
        3, "Starts of k-means on the regions, of which the best counts.", ge=1, le=1000, source="ours; 1"
    )
    iterations: int = setting(100, "Most iterations of k-means.", ge=1, source=f"{_CODE}: 100")

    def needs(self) -> Needs:
        """Return what the maps read: regions to cluster, and the network's last block on the images."""
        return Needs(reads=(FEATURES, REGIONS), arrays=(), network="always")

    def unread(self, stage: object = None) -> dict[str, str]:
        """Return the level of a background that there is not."""
        return {} if self.background else {"background_level": "it is read with background=true"}
