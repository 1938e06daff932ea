"""Object masks by diffusion over key affinities, batched over images of any aspect ratio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.masks import component, to_layers
from unsupseg_cli.methods.interface import Inputs, Labeller, Masks
from unsupseg_cli.methods.maskdistill.config import MasksOptions

_MASS = 0.5  # published code, gen_masks.py: share of the CLS affinity that order = mass keeps


@dataclass(frozen=True)
class Objects:
    """The masks (h, w) bool of one image, in the order they were found, and the score in [0, 1] of each."""

    masks: list[NDArray[np.bool_]]
    scores: list[float]


def find_objects(keys: Sequence[Tensor], queries: Sequence[Tensor], options: MasksOptions) -> list[Objects]:
    """Find the objects of a batch of images.

    Args:
        keys: (h_i, w_i, C) of each image, heads side by side.
        queries: (C,) of each image: the query of its CLS token.
        options: heads, shares and number of objects.

    Returns:
        The objects of each image; fewer than asked for where nothing is left, or where the source's key is zero: any
        other agrees with the sum of its nodes, each of which agrees with it.
        The score is the mean cosine between the keys of a mask and the sum of the nodes' keys.

    Affinities are products of keys, so that the nodes' votes, sum_p K k_p, are K times the sum of their keys: no
    matrix of patches by patches is made.
    """
    if not keys:
        return []
    packed = pad_sequence([view.flatten(0, 1) for view in keys], batch_first=True)
    size = torch.tensor([view.shape[0] * view.shape[1] for view in keys], device=packed.device)
    free = torch.arange(packed.shape[1], device=packed.device) < size[:, None]
    affinity = cls_affinity(packed, torch.stack(list(queries)), options)
    if options.order == "mass":
        affinity = _heaviest(affinity, free)
    if options.center == "image":
        packed = (packed - packed.sum(1, keepdim=True) / size[:, None, None]) * free[..., None]
    objects = [Objects([], []) for _ in keys]
    searching = np.ones(len(keys), bool)
    for _ in range(options.objects):
        source, agrees, cosine = _diffuse(packed, affinity, free, options)
        covered = torch.zeros_like(free)
        for image in np.flatnonzero(searching).tolist():
            height, width = keys[image].shape[:2]
            cells = slice(0, height * width)
            mask = component(agrees[image, cells].view(height, width).cpu().numpy(), int(source[image]))
            searching[image] = mask.any()
            if searching[image]:
                inside = torch.from_numpy(mask.ravel()).to(free.device)
                covered[image, cells] = inside
                objects[image].masks.append(mask)
                objects[image].scores.append(float(cosine[image, cells][inside].mean().clamp(0, 1)))
        free = free & ~covered
        searching &= free.any(1).cpu().numpy()
        if not searching.any():
            break
    return objects


def cls_affinity(keys: Tensor, query: Tensor, options: MasksOptions) -> Tensor:
    """Return the mean over the chosen heads of q_CLS . k, (B, N), for keys (B, N, C) and queries (B, C)."""
    channels = min(options.heads * options.head_size, keys.shape[-1])
    scores: Tensor = torch.einsum("bnc,bc->bn", keys[..., :channels], query[:, :channels])
    return scores * (options.head_size / channels)


def _heaviest(affinity: Tensor, valid: Tensor) -> Tensor:
    """Set to 0 what is outside of the largest values that hold half of the sum, as the published code adds them up."""
    values, order = affinity.masked_fill(~valid, 0).sort(1)
    share = values.cumsum(1) / values.sum(1, keepdim=True)
    inside = torch.zeros_like(valid).scatter(1, order, share > 1 - _MASS)
    return affinity * inside


def _diffuse(
    keys: Tensor, affinity: Tensor, free: Tensor, options: MasksOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the source (B,), the free cells that agree with its nodes (B, N), and their cosine (B, N)."""
    ranked = affinity.masked_fill(~free, -torch.inf)
    order = torch.argsort(ranked, dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter(1, order, torch.arange(order.shape[1]).to(order).expand_as(order))
    count = (options.top * free.sum(1, keepdim=True)).round().clamp_min(1)
    source = order[:, 0]
    chosen = keys[torch.arange(len(keys), device=keys.device), source]
    nodes = (rank < count) & free & (_times(keys, chosen) > 0)
    total = _times(keys.mT, nodes.to(keys.dtype))
    diffused = _times(keys, total)
    cosine = diffused / (keys.norm(dim=-1) * total.norm(dim=-1, keepdim=True)).clamp_min(1e-12)
    return source, (diffused > 0) & (cosine >= options.threshold) & free, cosine


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    product: Tensor = (matrices @ vectors[..., None])[..., 0]
    return product


class ObjectMasks(Labeller):
    """One or several object masks of every view; they have no classes yet."""

    options: MasksOptions

    def __init__(self, options: MasksOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        self._counted: Counter[str] = Counter()

    def label(self, views: Sequence[int]) -> list[Masks]:
        """Return the masks of some views, on the token grid."""
        features = self.inputs.features
        keys, queries = features.array("key", views), features.array("cls_query", views)
        if keys and keys[0].shape[-1] % self.options.head_size:
            raise UsageError(
                f"Keys of {keys[0].shape[-1]} channels are no whole number of heads of {self.options.head_size}; set "
                "head_size to the channels of a head of the backbone."
            )
        of_views = find_objects(keys, queries, self.options)
        return [self._masks(view, objects) for view, objects in zip(keys, of_views, strict=True)]

    def _masks(self, keys: Tensor, objects: Objects) -> Masks:
        height, width = keys.shape[:2]
        area = np.array([mask.sum() for mask in objects.masks], np.int64)
        self._counted.update(no_object=int(not len(area)), whole_view=int((area == height * width).sum()))
        return Masks(
            to_layers(objects.masks, (height, width)),
            area,
            np.array(objects.scores, np.float32),
            np.full(len(area), -1, np.int64),
        )

    def figures(self) -> dict[str, Any]:
        """Return in how many views no object was found, and how many masks cover their whole view."""
        counted, self._counted = dict(self._counted), Counter()
        return counted
