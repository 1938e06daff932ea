"""Guidance maps: what patches, views of a pyramid and the collection say about the classes of each cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_FINEST, _COARSEST, _HALVINGS = 1e-4, 10.0, 40
_LEAST = 1e-6  # of a probability whose logarithm is taken


def temperature(cosines: Tensor, confidence: float) -> float:
    """Return the temperature of a softmax over cosines (n, K) at which the highest probability is in the mean as given.

    Tokens of one backbone differ in cosines of .5, those of another in .05: a fixed temperature fits one of them.

    Args:
        cosines: of some points to the centres.
        confidence: mean of the highest probability, in (0, 1); at most what the sharpest softmax has is reached.
    """
    low, high = np.log(_FINEST), np.log(_COARSEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float((cosines / np.exp(middle)).softmax(1).amax(1).mean()) > confidence:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def overlaps(boxes: NDArray[np.float64], grid: tuple[int, int]) -> Tensor:
    """Return how much of each cell of a grid lies in each box, (M, h, w) in [0, 1].

    Args:
        boxes: left, top, right, bottom as shares of the grid's sides, (M, 4).
        grid: rows and columns.
    """
    left, top, right, bottom = torch.from_numpy(boxes).float().T[:, :, None]

    def along(cells: int, start: Tensor, stop: Tensor) -> Tensor:
        first = torch.arange(cells)
        return (torch.minimum(stop * cells, first + 1) - torch.maximum(start * cells, first)).clamp(0, 1)

    return along(grid[0], top, bottom)[:, :, None] * along(grid[1], left, right)[:, None, :]


def align(holistic: Tensor, content: Tensor) -> Tensor:
    """Return the probability of each class in a holistic cluster (M, K): what the regions of the cluster contain.

    This co-occurrence brings clusters of any level into the one label space, that of the patches.

    Args:
        holistic: probability of each cluster for each region, (R, M).
        content: share of each class among the patches of each region, (R, K).
    """
    together = holistic.T @ content
    return together / together.sum(1, keepdim=True).clamp_min(_LEAST)


def spread(values: Tensor, weights: Tensor) -> Tensor:
    """Return maps (K, h, w) of the mean of what covers each cell; where nothing does, the mean of all.

    Args:
        values: (M, K), of what covers cells.
        weights: how much it covers each, (M, h, w).
    """
    total = torch.einsum("mk,mhw->khw", values, weights)
    weight = weights.sum(0)
    return torch.where(weight > 0, total / weight.clamp_min(_LEAST), values.mean(0)[:, None, None])


def place_maps(maps: Tensor, boxes: NDArray[np.float64], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return maps of regions at their places on a grid (M, K, h, w), and where those are (M, 1, h, w).

    Args:
        maps: of each region, (M, K, h', w').
        boxes: left, top, right, bottom as shares of the grid's sides, (M, 4).
        grid: rows and columns.
    """
    left, top, right, bottom = torch.from_numpy(boxes).float().T[:, :, None]
    y, x = ((torch.arange(cells) + 0.5) / cells for cells in grid)
    across, down = 2 * (x - left) / (right - left) - 1, 2 * (y - top) / (bottom - top) - 1  # (M, w), (M, h)
    size = (len(maps), *grid)
    places = torch.stack([across[:, None, :].expand(size), down[:, :, None].expand(size)], -1)
    there = (places.abs() <= 1).all(-1)[:, None]
    placed = F.grid_sample(maps, places.to(maps.device), padding_mode="border", align_corners=False)
    return placed, there.to(maps.device)


def guide(patches: Tensor, priors: Tensor, shares: Tensor, weight: float) -> Tensor:
    """Return the guidance (K, h, w), which sums to one: what patches say, times what their context says beyond chance.

    p(k | patch, context) is p(k | patch) times the levels' mean of log p(k | view) / p(k), to the power of ``weight``:
    were the two independent given the class, 1 would be Bayes' rule.

    Args:
        patches: probabilities by patches, (K, h, w).
        priors: probabilities by the views of each level, (L, K, h, w).
        shares: of the classes in the collection, (K,).
        weight: of the context.
    """
    logs = patches.clamp_min(_LEAST).log()
    if weight:
        gain = priors.clamp_min(_LEAST).log().mean(0) - shares.clamp_min(_LEAST).log()[:, None, None]
        logs = logs + weight * gain
    return logs.softmax(0)


def pack(guidance: Tensor, top: int) -> dict[str, NDArray[Any]]:
    """Return the arrays that `unpack` takes: of each cell its ``top`` classes, from the highest.

    Args:
        guidance: (K, h, w), sums to one.
        top: classes that are kept; the others' share is given to these in proportion.
    """
    values, classes = guidance.sort(dim=0, descending=True, stable=True)
    return {
        "classes": classes[:top].to(torch.int16).cpu().numpy(),
        "guidance": values[:top].half().cpu().numpy(),
    }


def unpack(arrays: Mapping[str, NDArray[Any]], count: int) -> Tensor:
    """Return the guidance (K, h, w) float32 of a view, which sums to one.

    Args:
        arrays: what `pack` returned.
        count: K.
    """
    values = torch.from_numpy(arrays["guidance"]).float()
    classes = torch.from_numpy(arrays["classes"]).long()
    return torch.zeros(count, *values.shape[1:]).scatter_(0, classes, values / values.sum(0))
