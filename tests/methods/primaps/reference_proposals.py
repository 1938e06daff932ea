"""PriMaPs an image at a time, straight from the specification: what the batched search is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_proposals(
    features: Tensor,
    threshold: float = 0.4,
    coverage: float = 0.95,
    niter: int = 100,
    most: int = 254,
    anchor: str = "largest",
) -> tuple[list[Tensor], list[int], int]:
    """Return the soft masks (h, w) of features (h, w, C), their anchors and the cells covered.

    ``anchor`` is the end of the axis that a mask starts at: the one of the largest score, whatever its sign, the
    positive one by the deterministic rule for signs (``signed``), or by the solver's random sign (``random``).
    """
    height, width, channels = features.shape
    flat = features.reshape(-1, channels).float()
    unit = F.normalize(flat, dim=1)
    free = torch.ones(len(flat), dtype=torch.bool)
    masks: list[Tensor] = []
    anchors: list[int] = []
    stalled = 0
    while (~free).sum() < coverage * len(flat) and stalled < 3 and len(masks) < most:
        rows = flat[free]
        scores, _, axes = torch.pca_lowrank(rows, q=min(3, *rows.shape), niter=niter)
        axis = axes[:, 0]
        if anchor == "signed" and (scores[0, 0] if len(rows) >= channels else axis[0]) < 0:
            axis = -axis
        along = (unit @ axis).abs() if anchor == "largest" else unit @ axis
        along[~free] = -1 if anchor == "largest" else 0
        chosen = int(along.argmax())
        similarity = unit @ unit[chosen]
        similarity[~free] = 0
        mask = torch.where(similarity < threshold * similarity.max(), 0.0, similarity) / similarity.max()
        mask = torch.nan_to_num(mask)
        before = int(free.sum())
        free &= ~(mask > 0)
        stalled = stalled + 1 if int(free.sum()) == before else 0
        masks.append(mask.view(height, width))
        anchors.append(chosen)
    return masks, anchors, int((~free).sum())


def clustered(
    count: int,
    side: int = 40,
    channels: int = 384,
    clusters: int = 6,
    noise: float = 0.5,
    seed: int = 0,
) -> Tensor:
    """Features (count, side, side, channels): Voronoi regions of shared directions, an offset, and noise."""
    generator = torch.Generator().manual_seed(seed)
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    cells = torch.stack([ys, xs], -1).float().view(-1, 2)
    seeds = torch.rand(count, clusters, 2, generator=generator) * side
    region = torch.cdist(cells.expand(count, -1, -1), seeds).argmin(-1)
    means = F.normalize(torch.randn(count, clusters, channels, generator=generator), dim=-1)
    offset = 0.3 * F.normalize(torch.randn(count, 1, channels, generator=generator), dim=-1)
    values = torch.take_along_dim(means + offset, region[..., None], 1)
    values = values + noise * torch.randn(values.shape, generator=generator) / channels**0.5
    return values.view(count, side, side, channels)


def smooth_random(
    count: int, side: int = 40, channels: int = 384, rank: int = 24, noise: float = 0.3, seed: int = 0
) -> Tensor:
    """Features (count, side, side, channels): smooth random fields of limited rank, without clear regions."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, rank, 5, 5, generator=generator)
    fields = F.interpolate(coarse, size=(side, side), mode="bicubic").movedim(1, -1)
    axes = torch.randn(rank, channels, generator=generator) / rank**0.5
    values = fields @ axes
    return values + noise * torch.randn(values.shape, generator=generator)
