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
LEAST_MASS = 0.6
"""Mass that keeps a vertex, in units of 1 / (d+1) of a pixel: below one, each pixel keeps a vertex (docs/crf.md)."""


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
    corners: Tensor
    """(n+1) int32: where each pixel begins in ``vertex``, flattened."""
    triples: Tensor
    """(M+2) int32: where each vertex begins in a direction of ``neighbours``, flattened."""

    def gather(self, values: Tensor) -> Tensor:
        """Splat and blur: sum values (n, K) of the pixels at the vertices, (M+1, K) in the weights' precision."""
        vertices = _weighted_sums(
            values.to(self.pixel_weight.dtype), self.pixel, self.pixel_weight, self.start
        )
        for direction in self.neighbours:
            vertices = _weighted_sums(vertices, direction, self.blur, self.triples)
        return vertices

    def slice(self, vertices: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Read the blurred vertices at the pixels from ``first`` up to ``last``: (last - first, K)."""
        corners = self.vertex[first:last]
        return _weighted_sums(vertices, corners, self.weight[first:last], self.corners[: len(corners) + 1])

    def filter(self, values: Tensor) -> Tensor:
        """Return the Gaussian sum over all pixels, self included, up to one factor: (n, K) float32 to the same."""
        return self.slice(self.gather(values)).float()

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
    first = F.pad(counts.cumsum(0), (1, 0)).int()
    mass = F.embedding_bag(order, weight.view(-1, 1), first[:-1].long(), mode="sum").squeeze(1)
    kept = mass >= LEAST_MASS / (d + 1)
    vertices = vertices[kept]
    m = len(vertices)
    number = torch.where(kept, kept.cumsum(0) - 1, m).int()
    vertex = torch.empty_like(order, dtype=torch.int32).scatter_(0, order, number[inverse])
    start = torch.cat([first[:-1][kept], first[-1:], first[-1:]])
    start[0] = 0  # the pixels of a vertex left out weigh nothing, so that the vertex before may have them
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
        vertex.view(n, d + 1),
        weight,
        torch.arange(n, dtype=torch.int32, device=features.device).repeat_interleave(d + 1)[order],
        weight.flatten()[order] * kept[inverse],
        start,
        neighbours,
        features.new_tensor(BLUR).repeat(m + 1, 1),
        corners=torch.arange(0, n * (d + 1) + 1, d + 1, dtype=torch.int32, device=features.device),
        triples=torch.arange(0, 3 * m + 4, 3, dtype=torch.int32, device=features.device),
    )


def _weighted_sums(table: Tensor, rows: Tensor, weights: Tensor, start: Tensor) -> Tensor:
    """Return the weighted sum of the ``rows`` of a table between each ``start`` and the next."""
    return F.embedding_bag(
        rows.flatten(),
        table,
        start,
        mode="sum",
        per_sample_weights=weights.flatten(),
        include_last_offset=True,
    )


def _search(ordered: Tensor, wanted: Tensor) -> Tensor:
    """Return where each of the ``wanted`` numbers, in ascending order too, would stand among the ``ordered`` ones."""
    if ordered.device.type == "cpu":  # numpy starts each search where the last one ended
        return torch.from_numpy(np.searchsorted(ordered.numpy(), wanted.numpy()))
    return torch.searchsorted(ordered, wanted)


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find each pixel's simplex (Adams et al. 2010, section 3.1).

    Returns integer codes of the d+1 vertices (n, d+1), the change of code to the neighbour along each direction
    (d+1) and the barycentric weights (n, d+1). A vertex is numbered by the differences of its consecutive coordinates,
    each a multiple of d+1 and dependent on two features only: numbers small enough for int32, which sorts fast.
    """
    d, n = features.shape
    elevated = _elevate(features)
    difference = elevated[:-1] - elevated[1:]
    low = difference.amin(1).floor().int() - 3  # rounding and wrapping move a coordinate by at most 1.5
    span = (difference.amax(1).ceil().int() + 4 - low).tolist()
    if math.prod(span) >= 1 << 62:
        raise UsageError(
            "The CRF's appearance kernel is too narrow for this image: raise bi_rgb_std or bi_xy_std."
        )
    kind = torch.int32 if math.prod(span) < 1 << 31 else torch.int64
    radix = torch.tensor([0, *(math.prod(span[i + 1 :]) for i in range(d)), 0], dtype=kind).to(
        features.device
    )
    step = radix[1:] - radix[:-1]
    base, rank, weight = _containing(elevated)
    base = (base[:-1] - base[1:]).to(kind) - low[:, None]
    corner = (base * radix[1:-1, None]).sum(0, dtype=kind)
    change = torch.empty_like(rank, dtype=kind).scatter_(0, rank, step[:, None].expand(-1, n))
    code = torch.empty(n, d + 1, dtype=kind, device=features.device)
    for k in range(d + 1):
        code[:, k] = corner
        corner -= change[d - k]
    return code, step, weight.T.contiguous()


def _containing(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a corner, the ranks of the coordinates within the simplex and the weights of its corners, all (d+1, n)."""
    d = len(elevated) - 1
    base = torch.round(elevated)
    rank = _ranks(elevated - base) + base.sum(0).to(torch.int8)
    wrap = (rank < 0).to(torch.int8) - (rank > d).to(torch.int8)
    base += wrap
    place = (rank + wrap * (d + 1)).long()
    ordered = torch.empty_like(elevated).scatter_(0, place, elevated - base)
    weight = torch.empty_like(elevated)
    weight[0] = 1 + ordered[d] - ordered[0]
    weight[1:] = (ordered[:d] - ordered[1:]).flip(0)
    return base, place, weight


def _elevate(features: Tensor) -> Tensor:
    """Map (d, n) features onto the hyperplane of d+1 coordinates that sum to zero, in units of d+1 blur widths."""
    d, n = features.shape
    width = math.sqrt(2 / 3)  # splat, blur and slice together have variance one
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
