"""Dense CRF: refine soft scores with the image they belong to. Importing this package imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.crf.config import CRFConfig, Engine

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CRFConfig", "refine_batch", "resolve_engine"]


def resolve_engine(engine: Engine = "auto") -> Literal["torch", "pydensecrf", "exact"]:
    """Return the engine that will run: ``auto`` is torch, which is there, faster and as exact (docs/crf.md).

    Raises:
        UsageError: pydensecrf is asked for and not installed.
    """
    if engine == "pydensecrf":
        if find_spec("pydensecrf") is None:
            raise UsageError(
                "The CRF engine 'pydensecrf' is not installed: install it with pip install 'unsupseg[crf]', "
                "or take the engine 'torch'."
            )
        return "pydensecrf"
    return "exact" if engine == "exact" else "torch"


def refine_batch(
    log_probs: Sequence[Any],
    images: Sequence[Any],
    config: CRFConfig | None = None,
    workers: int | None = None,
) -> list[Tensor]:
    """Refine the scores of several images, which may differ in size, on all cores.

    Args:
        log_probs: one (K, h, w) tensor or array of log-probabilities per image; resized to the image.
        images: one (H, W, 3) or grey (H, W) uint8 array or tensor each.
        config: the constants and the engine.
        workers: images at a time; None is one per core.

    Returns:
        One (K, H, W) float32 CPU tensor of probabilities per image, in order; the same for any ``workers``.

    Raises:
        UsageError: the lists do not fit each other, or an input is not what it should be.
    """
    from unsupseg_cli.crf.batch import refine_batch as run

    return run(log_probs, images, config or CRFConfig(), workers)
