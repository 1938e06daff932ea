"""Guidance maps: what patches, views of a pyramid and the collection say about the classes of each cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_LEAST = 1e-6  # of a probability whose logarithm is taken


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
