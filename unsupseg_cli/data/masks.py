"""Masks of one view that may overlap, in layers: label maps, as few as hold every mask whole.

Masks that do not overlap make one layer (1, h, w): the usual label map of mask ids from 0, -1 where no mask is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.core.labels import VOID

MOST_MASKS = np.iinfo(np.int16).max
"""Masks that one view can hold: ids are int16."""


def to_layers(masks: Iterable[NDArray[np.bool_]], size: tuple[int, int]) -> NDArray[np.int16]:
    """Return the layers (L, h, w) of masks (h, w) in the order of their ids, each in the first layer that is free.

    Raises:
        ValueError: there are more than `MOST_MASKS`.
    """
    layers = [np.full(size, VOID, np.int16)]
    for number, mask in enumerate(masks):
        if number >= MOST_MASKS:
            raise ValueError(f"more than {MOST_MASKS:,} masks")
        box = extent(mask)
        inside = mask[box]
        for layer in layers:
            if not (layer[box][inside] != VOID).any():
                break
        else:
            layers.append(layer := np.full(size, VOID, np.int16))
        layer[box][inside] = number
    return np.stack(layers)


def to_masks(layers: NDArray[np.int16], count: int) -> NDArray[np.bool_]:
    """Return the ``count`` masks of some layers (L, h, w), each whole: (count, h, w)."""
    masks = np.zeros((count, *layers.shape[1:]), np.bool_)
    for layer in layers:
        rows, columns = np.nonzero(layer != VOID)
        masks[layer[rows, columns], rows, columns] = True
    return masks


def to_label_map(
    layers: NDArray[np.int16], score: NDArray[np.floating[Any]], area: NDArray[np.integer[Any]]
) -> NDArray[np.int16]:
    """Return one mask id for each pixel, (h, w): of masks that overlap, that of higher score, then of smaller area."""
    if len(layers) == 1:
        return np.asarray(layers[0])
    rank = np.full(len(score) + 1, len(score))  # the last entry is that of no mask
    rank[np.lexsort((area, -score.astype(np.float64)))] = np.arange(len(score))
    uppermost = rank[layers].argmin(0, keepdims=True)
    return np.asarray(np.take_along_axis(layers, uppermost, 0)[0])


def cell_boxes(layers: NDArray[np.int16], count: int) -> NDArray[np.int64]:
    """Return left, top, right and bottom of each mask in cells of the layers, (count, 4); zeros where it is empty."""
    from scipy import ndimage  # a quarter of a second, which calls that reuse an artifact do without

    boxes = np.zeros((count, 4), np.int64)
    for layer in layers:
        for number, extent in enumerate(ndimage.find_objects(layer.astype(np.int32) + 1, max_label=count)):
            if extent is not None:
                rows, columns = extent
                boxes[number] = columns.start, rows.start, columns.stop, rows.stop
    return boxes


def extent(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the rows and columns that a mask lies in."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def resized(masks: NDArray[np.bool_], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return masks (M, h, w) at another size, by the nearest cell."""
    if masks.shape[1:] == size:
        return masks
    if not len(masks):
        return np.zeros((0, *size), np.bool_)
    values: Tensor = F.interpolate(torch.from_numpy(masks)[:, None].float(), size=size, mode="nearest-exact")
    large: NDArray[np.bool_] = (values[:, 0] > 0.5).numpy()
    return large


def masked_means(tokens: Tensor, masks: NDArray[np.bool_]) -> Tensor:
    """Return the mean of the tokens (h, w, C) under each of some masks (M, H, W) of any size: (M, C).

    A cell counts as much as a mask covers of it. The mean of an empty mask is zero.
    """
    covered = F.interpolate(torch.from_numpy(masks)[None].float(), size=tokens.shape[:2], mode="area")[
        0
    ].flatten(1)
    covered = covered.to(tokens.device)
    return (covered @ tokens.flatten(0, 1).float()) / covered.sum(1, keepdim=True).clamp_min(1e-12)


def component(agrees: NDArray[np.bool_], source: int) -> NDArray[np.bool_]:
    """Return the 4-connected component (h, w) of a flat index; empty where that cell itself does not agree."""
    from scipy import ndimage

    parts, _ = ndimage.label(agrees)
    number = parts.flat[source]
    mask: NDArray[np.bool_] = (parts == number) & (number > 0)
    return mask
