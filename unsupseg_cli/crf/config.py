"""Options of the dense CRF. This module imports no torch."""

from __future__ import annotations

from typing import Literal

from unsupseg_cli.core.config import Config, setting

Engine = Literal["auto", "torch", "pydensecrf", "exact"]

LONGEST_SIDE = 640
"""Pixels of an image at which `predict --crf` refines: the kernels reach as far as in the images they were set for."""

_SOURCE = "STEGO (Hamilton et al. 2022), published code; shared by PriMaPs-EM and MaskDistill"


class CRFConfig(Config):
    """The fully connected CRF of Krähenbühl and Koltun (2011) with the field's seven constants."""

    iterations: int = setting(10, "Mean-field iterations; 0 keeps the scores.", ge=0, source=_SOURCE)
    pos_w: float = setting(3.0, "Weight of the smoothness kernel.", ge=0, source=_SOURCE)
    pos_xy_std: float = setting(1.0, "Its reach in pixels.", gt=0, source=_SOURCE)
    bi_w: float = setting(4.0, "Weight of the appearance kernel.", ge=0, source=_SOURCE)
    bi_xy_std: float = setting(67.0, "Its reach in pixels.", gt=0, source=_SOURCE)
    bi_rgb_std: float = setting(3.0, "Its reach in colour, of 255.", gt=0, source=_SOURCE)
    engine: Engine = setting(
        "auto",
        "torch (own, a lattice), pydensecrf (the library) or exact (all pairs: small images, or a GPU).",
    )

    def resolved(self) -> CRFConfig:
        """Return the same with ``engine`` settled: what enters an artifact's key."""
        from unsupseg_cli.crf import resolve_engine

        return self.model_copy(update={"engine": resolve_engine(self.engine)})
