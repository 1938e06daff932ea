"""Mean field of a dense CRF with Potts compatibility (Krähenbühl and Koltun 2011, Algorithm 1).

Both kernels are normalised symmetrically, D^-1/2 K D^-1/2, and contain the pixel itself, as in pydensecrf.
The smoothness kernel is a truncated separable Gaussian; the appearance kernel runs on a permutohedral
lattice, or by brute force (``exact``) over blocks of rows: quadratic time, memory still linear.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.crf import lattice
from unsupseg_cli.crf.config import CRFConfig
from unsupseg_cli.crf.scores import prepare

_REACH = 3  # standard deviations kept of the smoothness kernel: the first tap dropped weighs exp(-8) at std 1
_EXACT_REACH = 6  # what is dropped weighs less than float32 resolves
_BLOCK = 1 << 24  # kernel entries computed at a time by the exact filter: 64 MiB
_STRIP = 1 << 17  # values updated at a time, so that they stay in the cache: 512 KiB
_LARGE_WEIGHTS = 20.0
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
    """Refine what ``prepare`` returned: (K, H, W) float32 that sum to one after exp, (H, W, 3) uint8."""
    classes, height, width = log_probs.shape
    unary = log_probs.reshape(classes, -1).T.contiguous()
    q = unary.exp()
    if config.iterations and classes > 1:
        appearance = (_Exact if exact else _Lattice)(_features(image, config), config.bi_w)
        smoothness = _Smoothness(image, config, _EXACT_REACH if exact else _REACH)
        rows = max(1, _STRIP // (width * classes))
        for _ in range(config.iterations):
            appearance.gather(q)
            following = torch.empty_like(q)
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                pixels = slice(top * width, bottom * width)
                logits = appearance.message(pixels.start, pixels.stop).add_(unary[pixels])
                smoothness.add_message(logits, q, top, bottom)
                following[pixels] = _softmax(logits, config)
            q = following
    return q.T.reshape(classes, height, width).contiguous()


def _softmax(logits: Tensor, config: CRFConfig) -> Tensor:
    """Softmax over the last axis, in place.

    The unary is a log-probability and a normalised message is of the size of its weight: unless the weights
    are large, exp neither overflows nor vanishes for all classes, and no maximum need be subtracted.
    """
    if config.pos_w + config.bi_w > _LARGE_WEIGHTS:
        return torch.softmax(logits, 1)
    logits.exp_()
    return logits.div_(logits @ logits.new_ones(logits.shape[1], 1))


class _Smoothness:
    """The normalised kernel over positions: a separable Gaussian, evaluated for a strip of rows."""

    def __init__(self, image: Tensor, config: CRFConfig, reach: int) -> None:
        self.shape = tuple(image.shape[:2])
        std = config.pos_xy_std
        self.taps = [math.exp(-0.5 * (t / std) ** 2) for t in range(math.ceil(reach * std) + 1)]
        full = 2 * sum(self.taps) - 1
        self.weight = config.pos_w / full**2
        self.scale = [self._edge_scale(length, full, image.device) for length in self.shape]

    def _edge_scale(self, length: int, full: float, device: torch.device) -> Tensor:
        """(length) D^-1/2 along one axis relative to its value away from the border."""
        mass = torch.ones(length, dtype=torch.float64)
        for shift, tap in enumerate(self.taps[1:length], start=1):
            mass[shift:] += tap
            mass[:-shift] += tap
        return (full / mass).sqrt().float().to(device)

    def add_message(self, logits: Tensor, q: Tensor, top: int, bottom: int) -> None:
        """Add the message to the pixels of the rows from ``top`` to ``bottom`` to ``logits`` in place."""
        if not self.weight:
            return
        height, width = self.shape
        reach = len(self.taps) - 1
        low, high = max(0, top - reach), min(height, bottom + reach)
        strip = q.view(height, width, -1)[low:high].clone()
        self._scale_edges(strip, low)
        down = strip[top - low : bottom - low].clone()
        for shift, tap in enumerate(self.taps[1:height], start=1):
            first = max(top, shift)
            if first < bottom:
                down[first - top :].add_(strip[first - shift - low : bottom - shift - low], alpha=tap)
            last = min(bottom, height - shift)
            if last > top:
                down[: last - top].add_(strip[top + shift - low : last + shift - low], alpha=tap)
        out = down.clone()
        for shift, tap in enumerate(self.taps[1:width], start=1):
            out[:, shift:].add_(down[:, :-shift], alpha=tap)
            out[:, :-shift].add_(down[:, shift:], alpha=tap)
        self._scale_edges(out, top)
        logits.add_(out.view(logits.shape), alpha=self.weight)

    def _scale_edges(self, strip: Tensor, top: int) -> None:
        """Multiply rows and columns near the border, the only ones whose scale is not one, in place."""
        height, width = self.shape
        reach = len(self.taps) - 1
        for row in range(top, top + len(strip)):
            if row < reach or row >= height - reach:
                strip[row - top] *= self.scale[0][row]
        columns = self.scale[1][:, None]
        if width <= 2 * reach:
            strip *= columns
        elif reach:
            strip[:, :reach] *= columns[:reach]
            strip[:, -reach:] *= columns[-reach:]


class _Lattice:
    """The normalised appearance kernel times its weight, on a permutohedral lattice."""

    def __init__(self, features: Tensor, weight: float) -> None:
        self.lattice = lattice.build(features).normalised(weight)

    def gather(self, values: Tensor) -> None:
        """Take in the values (n, K) of all pixels."""
        self.vertices = self.lattice.gather(values)

    def message(self, first: int, last: int) -> Tensor:
        """Return the sums at the pixels from ``first`` to ``last``."""
        return self.lattice.slice(self.vertices, first, last)


class _Exact:
    """The same over all pairs of pixels, computed block by block: quadratic time, memory bounded."""

    def __init__(self, features: Tensor, weight: float) -> None:
        self.points = features.T.contiguous()
        n = len(self.points)
        self.rows = max(1, _BLOCK // n)
        self.kept = None
        self.kept = self._kernel(0, n) if n * n <= _KEPT else None
        scale = self._sums(torch.ones(n, 1, device=features.device), 0, n).rsqrt()
        self.inner, self.outer = scale, scale * weight

    def gather(self, values: Tensor) -> None:
        """Take in the values (n, K) of all pixels."""
        self.values = values * self.inner

    def message(self, first: int, last: int) -> Tensor:
        """Return the sums at the pixels from ``first`` to ``last``."""
        return self._sums(self.values, first, last) * self.outer[first:last]

    def _sums(self, values: Tensor, first: int, last: int) -> Tensor:
        starts = range(first, last, self.rows)
        return torch.cat([self._kernel(a, min(a + self.rows, last)) @ values for a in starts])

    def _kernel(self, first: int, last: int) -> Tensor:
        if self.kept is not None:
            return self.kept[first:last]
        block = self.points[first:last]
        distance = torch.cdist(block, self.points, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.square_().mul_(-0.5).exp_()


def _features(image: Tensor, config: CRFConfig) -> Tensor:
    """Return x, y and colour of every pixel in units of the kernel's standard deviations, (5, H W) float32."""
    height, width, _ = image.shape
    y, x = torch.meshgrid(*(torch.arange(n, device=image.device) for n in (height, width)), indexing="ij")
    xy = torch.stack([x.flatten(), y.flatten()]).float() / config.bi_xy_std
    return torch.cat([xy, image.reshape(-1, 3).T.float() / config.bi_rgb_std])
