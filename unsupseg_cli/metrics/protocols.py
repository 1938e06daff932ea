"""Protocols of evaluation by name: geometry, resize filter, flip and matching."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unsupseg_cli.core.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Protocol:
    """How predictions and labels are brought together.

    ``size`` None takes the working size of the model. Under `native` the prediction is brought to the label's
    original size; under the others image and label are both resized and cropped first.
    """

    name: str
    geometry: str
    size: int | tuple[int, int] | None
    filter: str
    flip: bool
    matching: str
    source: str

    def describe(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "native", "native", None, "bilinear", False, "hungarian",
            "whole image, scored at the label's original size",
        ),
        Protocol(
            "maskdistill", "native", None, "bilinear", False, "iou",
            "MaskDistill's published code: whole image, original size, clusters matched by IoU",
        ),
        Protocol(
            "stego", "stego", 320, "nearest", True, "hungarian",
            "STEGO's published code: shorter side 320, centre crop, image resized by nearest neighbour",
        ),
        Protocol(
            "primaps", "stego", 320, "tensor", True, "hungarian",
            "PriMaPs-EM's published code: shorter side 320, centre crop, bilinear without antialiasing, as tensors",
        ),
        Protocol(
            "picie", "stego", 320, "bilinear", False, "hungarian",
            "PiCIE's published code: shorter side 320, centre crop, bilinear, no flip",
        ),
        Protocol(
            "transfgu", "squash", 320, "bilinear", False, "hungarian",
            "TransFGU's published code: squashed to 320x320",
        ),
        Protocol(
            "transfgu-cityscapes", "squash", (320, 640), "bilinear", False, "hungarian",
            "TransFGU's published code on Cityscapes: the whole frame at 320x640",
        ),
    )
}  # fmt: skip


def get_protocol(name: str) -> Protocol:
    """Return a protocol; raises UsageError with a suggestion for an unknown name."""
    if name not in PROTOCOLS:
        raise UsageError(f"Unknown protocol '{name}'{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]
