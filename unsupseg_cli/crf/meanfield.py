"""Mean field of a dense CRF with Potts compatibility (Krähenbühl and Koltun 2011, Algorithm 1).

Both kernels are normalised symmetrically, D^-1/2 K D^-1/2, and contain the pixel itself, as in pydensecrf.
The smoothness kernel is a truncated Gaussian; the appearance kernel runs on a permutohedral
lattice, or over all pairs of pixels (``exact``): quadratic time, memory still linear.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.crf import lattice
from unsupseg_cli.crf.config import CRFConfig
from unsupseg_cli.crf.scores import prepare

_REACH = 3  # standard deviations kept of the smoothness kernel: the first tap dropped weighs exp(-8) at std 1
_EXACT_REACH = 6  # what is dropped weighs less than float32 resolves
_STRIP = 1 << 20  # values updated at a time: 4 MiB
_LARGE_WEIGHTS = 20.0


@torch.no_grad()
def refine(log_probs: Any, images: Any, config: CRFConfig | None = None) -> Tensor:
    """Refine scores with the image they belong to.

    Args:
        log_probs: (K, h, w) or (B, K, h, w) log-probabilities, resized to the image if need be.
        images: (H, W, 3) or (H, W) uint8, or a batch (B, H, W, 3) or (B, H, W).
        config: the constants. The engine ``exact`` evaluates the appearance kernel over all pairs of pixels and
            cuts the other at float32's resolution; any other takes the lattice.

    Returns:
        Probabilities Q (K, H, W) or (B, K, H, W) float32 on the device of ``log_probs``.

    Raises:
        UsageError: the inputs do not fit each other or are not what they should be.
    """
    config = config or CRFConfig()
    scores = torch.as_tensor(log_probs)
    if scores.ndim != 4:
        return refine_prepared(*prepare(scores, images), config)
    if len(scores) != len(images):
        raise UsageError(f"{len(scores)} score maps came with {len(images)} images; expected one for each.")
    pairs = zip(scores, images, strict=True)
    return torch.stack([refine_prepared(*prepare(s, i), config) for s, i in pairs])


@torch.no_grad()
def refine_prepared(log_probs: Tensor, image: Tensor, config: CRFConfig) -> Tensor:
    """Refine what ``prepare`` returned: (K, H, W) float32 that sum to one after exp, (H, W, 3) uint8."""
    classes, height, width = log_probs.shape
    exact = config.engine == "exact"
    unary = log_probs.reshape(classes, -1).T.contiguous()
    q = unary.exp()
    if config.iterations and classes > 1:
        appearance = (_Exact if exact else _Lattice)(_features(image, config), config.bi_w)
        smoothness = _Smoothness(image, classes, config, _EXACT_REACH if exact else _REACH)
        rows = max(1, _STRIP // (width * classes)) if unary.device.type == "cpu" else height
        following = torch.empty_like(q)  # two buffers in turn: fresh memory costs more than the sums
        for _ in range(config.iterations):
            appearance.gather(q)
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                pixels = slice(top * width, bottom * width)
                logits = following[pixels].copy_(appearance.message(pixels.start, pixels.stop))
                smoothness.add_message(logits.add_(unary[pixels]), q, top, bottom)
                _softmax_(logits, config)
            q, following = following, q
    return q.T.reshape(classes, height, width).contiguous()


def _softmax_(logits: Tensor, config: CRFConfig) -> None:
    """Softmax over the last axis, in place.

    The unary is a log-probability and a normalised message is of the size of its weight: unless the weights
    are large, exp neither overflows nor vanishes for all classes, and no maximum need be subtracted.
    """
    if config.pos_w + config.bi_w > _LARGE_WEIGHTS:
        logits -= logits.amax(1, keepdim=True)
    logits.exp_()
    logits.div_(logits @ logits.new_ones(logits.shape[1], 1))


class _Smoothness:
    """The normalised kernel over positions: a truncated Gaussian, evaluated for a strip of rows."""

    def __init__(self, image: Tensor, classes: int, config: CRFConfig, reach: int) -> None:
        self.shape = tuple(image.shape[:2])
        std = config.pos_xy_std
        self.reach = min(math.ceil(reach * std), max(self.shape) - 1)
        steps = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64, device=image.device)
        taps = torch.exp(-0.5 * (steps / std) ** 2)
        self.scale = [self._edge_scale(length, taps) for length in self.shape]
        taps = (taps / taps.sum()).float()
        self.kernels = [
            taps.view(shape).expand(classes, *shape).contiguous() for shape in ((1, -1, 1), (1, 1, -1))
        ]
        self.weight = config.pos_w

    def _edge_scale(self, length: int, taps: Tensor) -> Tensor:
        """Return D^-1/2 along one axis (length), relative to its value away from the border."""
        mass = F.conv1d(taps.new_ones(1, 1, length), taps[None, None], padding=self.reach)[0, 0]
        return (taps.sum() / mass).sqrt().float()

    def add_message(self, logits: Tensor, q: Tensor, top: int, bottom: int) -> None:
        """Add the message to the pixels of the rows from ``top`` to ``bottom`` to ``logits`` in place."""
        if not self.weight:
            return
        height, width = self.shape
        low, high = max(0, top - self.reach), min(height, bottom + self.reach)
        strip = q.new_zeros(1, bottom - top + 2 * self.reach, width, q.shape[1])
        inside = strip[0, low - top + self.reach : high - top + self.reach]
        inside.copy_(q.view(height, width, -1)[low:high])
        self._scale_edges(inside, low)
        # "Channels last": depthwise convolutions run several times faster so.
        message = strip.permute(0, 3, 1, 2)
        for kernel in self.kernels:
            sideways = self.reach if kernel.shape[-1] > 1 else 0
            message = F.conv2d(message, kernel, padding=(0, sideways), groups=len(kernel))
        out = message.permute(0, 2, 3, 1)[0]
        self._scale_edges(out, top)
        logits.view(out.shape).add_(out, alpha=self.weight)

    def _scale_edges(self, strip: Tensor, top: int) -> None:
        """Multiply rows and columns near the border, the only ones whose scale is not one, in place."""
        height, width = self.shape
        for row in range(top, top + len(strip)):
            if row < self.reach or row >= height - self.reach:
                strip[row - top] *= self.scale[0][row]
        columns = self.scale[1][:, None]
        if width <= 2 * self.reach:
            strip *= columns
        elif self.reach:
            strip[:, : self.reach] *= columns[: self.reach]
            strip[:, -self.reach :] *= columns[-self.reach :]


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
    """The same over all pairs of pixels: fused attention over place and colour, in linear memory.

    With queries f_i and keys (f_j, -|f_j|^2 / 2) the softmax of attention has the weights K_ij / D_i, K the Gaussian
    kernel and D its row sums. D itself comes from one more key whose weight beside each pixel's is known to be 1: it
    takes the share 1 / (D_i + 1).
    """

    def __init__(self, features: Tensor, weight: float) -> None:
        points = (features - features.mean(1, keepdim=True)).T.double()  # centred: smaller exponents
        half = 0.5 * points.square().sum(1, keepdim=True)
        ones, zeros = torch.ones_like(half), torch.zeros_like(half)
        self.queries = torch.cat([points, ones, half], 1).float()
        self.keys = torch.cat([points, -half, zeros], 1).float()
        sink = self.keys.new_zeros(1, self.keys.shape[1])
        sink[0, -1] = 1
        marked = torch.cat([zeros, ones[:1]]).float()
        share = self._attention(torch.cat([self.keys, sink]), marked, 0, len(points))
        self.sums = 1 / share - 1
        self.weight = weight

    def gather(self, values: Tensor) -> None:
        """Take in the values (n, K) of all pixels."""
        self.values = values * self.sums.rsqrt()

    def message(self, first: int, last: int) -> Tensor:
        """Return the sums at the pixels from ``first`` to ``last``."""
        scale = self.sums[first:last].sqrt() * self.weight
        return self._attention(self.keys, self.values, first, last) * scale

    def _attention(self, keys: Tensor, values: Tensor, first: int, last: int) -> Tensor:
        """Return the weighted means of values (m, K) at the pixels from ``first`` to ``last``."""
        # Fused kernels want one width, a multiple of 8.
        width = -(-max(keys.shape[1], values.shape[1]) // 8) * 8
        query, key, value = (
            F.pad(matrix, (0, width - matrix.shape[1]))[None, None]
            for matrix in (self.queries[first:last], keys, values)
        )
        means = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return means[0, 0, :, : values.shape[1]]


def _features(image: Tensor, config: CRFConfig) -> Tensor:
    """Return x, y and colour of every pixel in units of the kernel's standard deviations, (5, H W) float32."""
    height, width, _ = image.shape
    y, x = torch.meshgrid(*(torch.arange(n, device=image.device) for n in (height, width)), indexing="ij")
    xy = torch.stack([x.flatten(), y.flatten()]).float() / config.bi_xy_std
    return torch.cat([xy, image.reshape(-1, 3).T.float() / config.bi_rgb_std])
