"""Mean field of a dense CRF with Potts compatibility (Krähenbühl and Koltun 2011, Algorithm 1).

Both kernels are normalised symmetrically, D^-1/2 K D^-1/2, and contain the pixel itself, as in pydensecrf.
The smoothness kernel is a truncated separable Gaussian; the appearance kernel runs on a permutohedral
lattice, or by brute force (``exact``) over blocks of rows: quadratic time, memory still linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.crf import lattice
from unsupseg_cli.crf.config import CRFConfig
from unsupseg_cli.crf.scores import prepare

Filter = Callable[[Tensor], Tensor]

_REACH = 3  # standard deviations kept of the smoothness kernel: the first tap dropped weighs exp(-8) at std 1
_EXACT_REACH = 6  # what is dropped weighs less than float32 resolves
_BLOCK = 1 << 24  # kernel entries computed at a time by the exact filter: 64 MiB
_KEPT = 1 << 27  # kernel entries that the exact filter keeps between iterations: 512 MiB


@torch.no_grad()
def refine(log_probs: Any, images: Any, config: CRFConfig | None = None, *, exact: bool = False) -> Tensor:
    """Refine scores with the image they belong to.

    Args:
        log_probs: (K, h, w) or (B, K, h, w) log-probabilities, resized to the image if need be.
        images: (H, W, 3) or (H, W) uint8, or a batch (B, H, W, 3) or (B, H, W).
        config: the constants; ``engine`` is not looked at.
        exact: evaluate the appearance kernel over all pairs of pixels and cut the other at float32's
            resolution: the reference, in quadratic time (small images, or a fast device).

    Returns:
        Probabilities Q (K, H, W) or (B, K, H, W) float32 on the device of ``log_probs``.

    Raises:
        UsageError: the inputs do not fit each other or are not what they should be.
    """
    config = config or CRFConfig()
    scores = torch.as_tensor(log_probs)
    if scores.ndim != 4:
        return refine_prepared(*prepare(scores, images), config, exact=exact)
    if len(scores) != len(images):
        raise UsageError(f"{len(scores)} score maps came with {len(images)} images; expected one for each.")
    pairs = zip(scores, images, strict=True)
    return torch.stack([refine_prepared(*prepare(s, i), config, exact=exact) for s, i in pairs])


@torch.no_grad()
def refine_prepared(log_probs: Tensor, image: Tensor, config: CRFConfig, *, exact: bool = False) -> Tensor:
    """Refine checked inputs of one size: (K, H, W) float32 and (H, W, 3) uint8."""
    classes, height, width = log_probs.shape
    unary = log_probs.reshape(classes, -1).T.contiguous()
    q = torch.softmax(unary, 1)
    if config.iterations and classes > 1:
        kernels = [
            (config.pos_w, _smoothness(image, config, exact)),
            (config.bi_w, _appearance(image, config, exact)),
        ]
        for _ in range(config.iterations):
            q = torch.softmax(_step(q, unary, kernels), 1)
    return q.T.reshape(classes, height, width).contiguous()


def _step(q: Tensor, unary: Tensor, kernels: list[tuple[float, Filter]]) -> Tensor:
    """One update before its softmax: the unary plus, by Potts, the messages from pixels of the same class."""
    logits = unary.clone()
    for weight, kernel in kernels:
        if weight:
            logits.add_(kernel(q), alpha=weight)
    return logits


def _appearance(image: Tensor, config: CRFConfig, exact: bool) -> Filter:
    height, width, _ = image.shape
    colour = image.reshape(-1, 3).T.float() / config.bi_rgb_std
    features = torch.cat([_positions(height, width, image.device) / config.bi_xy_std, colour])
    if exact:
        return _exact(features)
    return lattice.build(features).normalised().filter


def _smoothness(image: Tensor, config: CRFConfig, exact: bool) -> Filter:
    height, width, _ = image.shape
    reach = math.ceil((_EXACT_REACH if exact else _REACH) * config.pos_xy_std)

    def blur(values: Tensor) -> Tensor:
        planes = values.view(height, width, -1)
        for axis in (0, 1):
            planes = _blur_axis(planes, axis, config.pos_xy_std, reach)
        return planes.reshape(height * width, -1)

    return _normalise(blur, height * width, image.device)


def _blur_axis(planes: Tensor, axis: int, std: float, reach: int) -> Tensor:
    """Un-normalised Gaussian along one axis of (H, W, K), by shifted sums; nothing comes from outside."""
    length = planes.shape[axis]
    out = planes.clone()
    for shift in range(1, min(reach, length - 1) + 1):
        weight = math.exp(-0.5 * (shift / std) ** 2)
        near, far = (0, length - shift), (shift, length - shift)
        out.narrow(axis, *far).add_(planes.narrow(axis, *near), alpha=weight)
        out.narrow(axis, *near).add_(planes.narrow(axis, *far), alpha=weight)
    return out


def _exact(features: Tensor) -> Filter:
    """Return the normalised Gaussian over all pairs of pixels of ``features`` (d, n), block by block."""
    points = features.T.contiguous()
    blocks = torch.split(points, max(1, _BLOCK // len(points)))

    def rows(block: Tensor) -> Tensor:
        distance = torch.cdist(block, points, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.square_().mul_(-0.5).exp_()

    kept = [rows(block) for block in blocks] if len(points) ** 2 <= _KEPT else None

    def gauss(values: Tensor) -> Tensor:
        return torch.cat([kernel @ values for kernel in kept or map(rows, blocks)])

    return _normalise(gauss, len(points), features.device)


def _normalise(kernel: Filter, n: int, device: torch.device) -> Filter:
    """Return D^-1/2 K D^-1/2, with D the row sums of ``kernel``."""
    scale = kernel(torch.ones(n, 1, device=device)).clamp_min(1e-20).rsqrt()
    return lambda values: kernel(values * scale) * scale


def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """Return x and y of every pixel, (2, H W) float32."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([x.flatten(), y.flatten()]).float()
