"""Checks of what goes into a CRF, and scores brought to the size of their image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.core.errors import UsageError

_LOWEST = -100.0  # an impossible class (log 0) becomes finite, so that interpolation stays defined
_TOLERANCE = 0.05  # of the log of the sum; float16 log-probabilities stay well inside


def prepare(log_probs: Any, image: Any) -> tuple[Tensor, Tensor]:
    """Check one image's inputs and return them at one size on the scores' device.

    Args:
        log_probs: (K, h, w) log-probabilities, any float type.
        image: (H, W, 3) or (H, W) uint8.

    Returns:
        log-probabilities (K, H, W) float32 (bilinear, corners not aligned) and the image (H, W, 3) uint8.

    Raises:
        UsageError: wrong shape or type, NaN, or scores that are no log-probabilities.
    """
    scores = torch.as_tensor(log_probs)
    if scores.ndim != 3 or not scores.is_floating_point() or 0 in scores.shape:
        raise UsageError(
            f"A CRF needs log-probabilities of shape (K, h, w), found {tuple(scores.shape)} {scores.dtype}; "
            "hard labels must be turned into probabilities first."
        )
    pixels = _image(image).to(scores.device)
    scores = scores.float()
    if bool(torch.isnan(scores).any()):
        raise UsageError("The scores hold NaN: a CRF needs finite log-probabilities; predict them again.")
    scores = scores.clamp_min(_LOWEST)
    worst = float(torch.logsumexp(scores, 0).abs().max())
    if not worst <= _TOLERANCE:
        raise UsageError(
            f"The scores are not log-probabilities: the log of their sum over the {len(scores)} classes is off "
            f"by {worst:.3g}, expected 0; apply log_softmax over the classes first."
        )
    size = (pixels.shape[0], pixels.shape[1])
    if tuple(scores.shape[1:]) != size:
        scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
    return torch.log_softmax(scores, 0), pixels


def _image(image: Any) -> Tensor:
    pixels = torch.tensor(image) if isinstance(image, np.ndarray) else torch.as_tensor(image)
    if pixels.dtype != torch.uint8:
        raise UsageError(f"A CRF needs a uint8 image (values 0 to 255), found {pixels.dtype}.")
    if pixels.ndim == 2:
        pixels = pixels[..., None].expand(-1, -1, 3)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise UsageError(f"A CRF needs an image of shape (H, W, 3) or (H, W), found {tuple(pixels.shape)}.")
    return pixels.contiguous()
