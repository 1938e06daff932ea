"""Gaussian filtering in five dimensions through a permutohedral lattice, as gathers over sparse tables.

A lattice is built once per image; filtering K channels is then splat (pixels to vertices), blur along the
d+1 lattice directions and slice (vertices to pixels), each one ``embedding_bag``. Method: Adams, Baek and
Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice, 2010, sections 3 and 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.core.errors import UsageError

BLUR = (1.0, 0.5, 0.5)
"""Centre and two neighbours of the blur along one direction (Adams et al. 2010, section 3.2)."""


@dataclass(frozen=True)
class Lattice:
    """Sparse tables of one image: n pixels, M occupied vertices, d+1 directions; row M is an empty vertex."""

    vertex: Tensor
    """(n, d+1) int32: the vertices of the simplex that holds each pixel."""
    weight: Tensor
    """(n, d+1) float: barycentric weights; a row sums to one unless they are normalised."""
    pixel: Tensor
    """(n (d+1)) int32: the pixels of each vertex, vertex after vertex."""
    pixel_weight: Tensor
    """(n (d+1)) float: their weights."""
    start: Tensor
    """(M+2) int32: where each vertex begins in ``pixel``; vertex M is empty."""
    neighbours: Tensor
    """(d+1, M+1, 3) int32: each vertex, then its two neighbours along a direction; M where there is none."""
    blur: Tensor
    """(M+1, 3) float: the weights of each vertex and of its neighbours."""

    def gather(self, values: Tensor) -> Tensor:
        """Splat and blur: sum values (n, K) of the pixels at the vertices, (M+1, K) in the weights' precision."""
        values = values.to(self.pixel_weight.dtype)
        vertices = F.embedding_bag(
            self.pixel,
            values,
            self.start,
            mode="sum",
            per_sample_weights=self.pixel_weight,
            include_last_offset=True,
        )
        for direction in self.neighbours:
            vertices = F.embedding_bag(direction, vertices, mode="sum", per_sample_weights=self.blur)
        return vertices

    def slice(self, vertices: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Read the blurred vertices at the pixels from ``first`` up to ``last``: (last - first, K) float32."""
        return F.embedding_bag(
            self.vertex[first:last], vertices, mode="sum", per_sample_weights=self.weight[first:last]
        ).float()

    def filter(self, values: Tensor) -> Tensor:
        """Return the Gaussian sum over all pixels, self included, up to one factor: (n, K) float32 to the same."""
        return self.slice(self.gather(values))

    def normalised(self, factor: float = 1.0) -> Lattice:
        """Return the lattice of ``factor`` D^-1/2 K D^-1/2, with D the row sums of K, folded into the weights.

        Its weights are bfloat16, and so are the values at the vertices: memory traffic is what filtering takes, and
        the lattice is far coarser than the rounding (docs/crf.md). float16 would spend its time on denormal numbers.
        """
        ones = self.weight.new_ones(len(self.weight), 1)
        scale = self.filter(ones).squeeze(1).clamp_min(1e-20).rsqrt()
        return replace(
            self,
            weight=(self.weight * (factor * scale)[:, None]).bfloat16(),
            pixel_weight=(self.pixel_weight * scale[self.pixel]).bfloat16(),
            blur=self.blur.bfloat16(),
        )


def build(features: Tensor) -> Lattice:
    """Build the lattice of ``features`` (d, n) float32 in units of the kernel's standard deviation."""
    d, n = features.shape
    code, step, weight = _simplices(features)
    code, order = torch.sort(code.flatten())
    vertices, inverse, counts = torch.unique_consecutive(code, return_inverse=True, return_counts=True)
    m = len(vertices)
    vertex = torch.empty_like(order, dtype=torch.int32).scatter_(0, order, inverse.int())
    start = F.pad(counts.cumsum(0), (1, 1))
    start[-1] = start[-2]
    neighbours = torch.empty(d + 1, m + 1, 3, dtype=torch.int32, device=features.device)
    rows = torch.arange(m + 1, dtype=torch.int32, device=features.device)
    for table, offset in zip(neighbours, step.tolist(), strict=True):
        wanted = vertices + offset
        place = _search(vertices, wanted).clamp_max_(m - 1)
        place = torch.where(vertices[place] == wanted, place, m)
        table[:, 0] = rows
        table[:m, 1] = place
        table[:, 2] = torch.full_like(rows, m).scatter_(0, place, rows[:m])
        table[m, 1:] = m
    return Lattice(
        vertex.view(d + 1, n).T.contiguous(),
        weight.T.contiguous(),
        torch.arange(n, dtype=torch.int32, device=features.device).repeat(d + 1)[order],
        weight.flatten()[order],
        start.int(),
        neighbours,
        features.new_tensor(BLUR).repeat(m + 1, 1),
    )


def _search(ordered: Tensor, wanted: Tensor) -> Tensor:
    """Return where each of the ``wanted`` numbers, in ascending order too, would stand among the ``ordered`` ones."""
    if ordered.device.type == "cpu":  # numpy starts each search where the last one ended
        return torch.from_numpy(np.searchsorted(ordered.numpy(), wanted.numpy()))
    return torch.searchsorted(ordered, wanted)


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find each pixel's simplex (Adams et al. 2010, section 3.1).

    Returns the integer codes of the d+1 vertices (d+1, n), the change of code to the neighbour along each
    direction (d+1) and the barycentric weights (d+1, n).
    """
    d, n = features.shape
    elevated = _elevate(features)
    base = torch.round(elevated / (d + 1)).int()
    excess = base.sum(0, dtype=torch.int32).to(torch.int8)
    base *= d + 1
    rank = _ranks(elevated - base) + excess
    wrap = (d + 1) * ((rank < 0).to(torch.int8) - (rank > d).to(torch.int8))
    base += wrap
    place_in_order = (rank + wrap).long()
    ordered = torch.empty_like(elevated).scatter_(0, place_in_order, (elevated - base) / (d + 1))
    weight = torch.empty_like(elevated)
    weight[0] = 1 + ordered[d] - ordered[0]
    weight[1:] = (ordered[:d] - ordered[1:]).flip(0)

    low = base[:d].amin(1) - 2 * (d + 1)
    span = (base[:d].amax(1) - low + 3 * (d + 1)).tolist()
    if math.prod(span) >= 1 << 62:
        raise UsageError(
            "The CRF's appearance kernel is too narrow for this image: raise bi_rgb_std or bi_xy_std."
        )
    radix = [math.prod(span[i + 1 :]) for i in range(d)]
    place = torch.tensor([*radix, 0], device=features.device)
    code = torch.empty(d + 1, n, dtype=torch.int64, device=features.device)
    code[0] = ((base[:d] - low[:, None]) * place[:d, None]).sum(0)
    radix_of_rank = torch.empty_like(code).scatter_(0, place_in_order, place[:, None].expand(-1, n))
    for k in range(d):
        code[k + 1] = code[k] + sum(radix) - (d + 1) * radix_of_rank[d - k]
    return code, (d + 1) * place - sum(radix), weight


def _elevate(features: Tensor) -> Tensor:
    """Map (d, n) features onto the hyperplane of d+1 coordinates that sum to zero, blur-width units."""
    d, n = features.shape
    width = math.sqrt(2 / 3) * (d + 1)  # splat, blur and slice together have variance one
    elevated = features.new_zeros(d + 1, n)
    for i in range(d):
        scaled = features[i] * (width / math.sqrt((i + 1) * (i + 2)))
        elevated[: i + 1] += scaled
        elevated[i + 1] -= (i + 1) * scaled
    return elevated


def _ranks(values: Tensor) -> Tensor:
    """Rank each column of (d+1, n): zero for the largest; ties go by row."""
    rank = torch.zeros(values.shape, dtype=torch.int8, device=values.device)
    for i in range(len(values)):
        for j in range(i + 1, len(values)):
            smaller = values[i] < values[j]
            rank[i] += smaller
            rank[j] += ~smaller
    return rank
