"""Hyper-parameters of MaskDistill."""

from __future__ import annotations

from typing import Literal

from unsupseg_cli.core.config import setting
from unsupseg_cli.methods.declaration import MethodOptions, Needs

_CODE = "MaskDistill, published code"


class MasksOptions(MethodOptions):
    """Options of ``pseudolabel --method maskdistill --part masks``."""

    heads: int = setting(
        5,
        "The CLS affinity is the mean over this many first heads; more than there are: all.",
        ge=1,
        source=f"{_CODE}: gen_masks.py, --heads 5 of 6",
    )
    head_size: int = setting(64, "Channels of a head.", ge=1, source="ViT-S/16: 384 channels, 6 heads")
    top: float = setting(
        0.4,
        "Share of the patches that may be sources, by CLS affinity.",
        gt=0,
        le=1,
        source=f"{_CODE}: gen_masks.py, --topk 0.4",
    )
    order: Literal["affinity", "mass"] = setting(
        "affinity",
        "Sources are ranked by CLS affinity; mass: after all outside of half of its sum were set to 0.",
        source=f"ours; {_CODE}: mass",
    )
    center: Literal["none", "image"] = setting(
        "image",
        "Keys agree as they are (none), or less the mean of their image.",
        source=f"ours (README.md); {_CODE}: none",
    )
    threshold: float = setting(
        0.1,
        "Least cosine between a cell's key and the sum of the nodes' keys; 0: all that agree.",
        ge=0,
        lt=1,
        source=f"ours (README.md); {_CODE}: 0",
    )
    objects: int = setting(
        1,
        "Most objects of an image; each is sought in what the others left.",
        ge=1,
        source=f"ours; {_CODE}: 1",
    )

    def needs(self) -> Needs:
        """Return what the masks read: keys and the query of the CLS token; neither classes nor chance."""
        return Needs(arrays=("key", "cls_query"), identity=())
