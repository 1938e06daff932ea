"""How much segmentations of the same images tell about each other, beyond what the place in the image tells.

Without labels nobody knows which of several segmentations is right. But what two of them find that look at images in
different ways (other blocks, backbones, conditionings) is more likely in the images than in the features. Two that
divide every image into the same quarters agree as well, and say nothing: so only what is left when the place is known
counts, the mutual information given the place.

Source: choosing among models by their agreement is Duan et al., "Unsupervised model selection for variational
disentangled representation learning", ICLR 2020; conditional mutual information: Cover and Thomas, "Elements of
information theory" (2006), section 2.5. That the place is what is conditioned on is ours (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PLACES = 8
"""Cells of an image's side that a place is told by."""
_ENOUGH = 200_000  # cells of maps that are compared: more change the third digit


def shared_information(maps: NDArray[np.int16], seed: int = 0) -> NDArray[np.float64]:
    """Return the mutual information of each two segmentations given the place, (n, n) in nats, 0 on the diagonal.

    Args:
        maps: classes from 0, (n, images, S, S) with S a multiple of `PLACES`, all of the same images.
        seed: of the cells that are compared, where there are many.
    """
    count, side = len(maps), maps.shape[-1]
    rows, columns = np.mgrid[0:side, 0:side] * PLACES // side
    places = np.broadcast_to(rows * PLACES + columns, maps.shape[1:]).ravel()
    flat = maps.reshape(count, -1).astype(np.int64)
    if len(places) > _ENOUGH:
        chosen = np.random.default_rng(seed).choice(len(places), _ENOUGH, replace=False)
        places, flat = places[chosen], flat[:, chosen]
    shared = np.zeros((count, count))
    for one in range(count):
        for other in range(one):
            shared[one, other] = shared[other, one] = _given_place(flat[one], flat[other], places)
    return shared


def _given_place(one: NDArray[np.int64], other: NDArray[np.int64], places: NDArray[np.int64]) -> float:
    """Return the mutual information of two labellings (n,) given a third, in nats."""
    shape = (PLACES**2, int(one.max()) + 1, int(other.max()) + 1)
    cells = np.ravel_multi_index((places, one, other), shape)
    joint = np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape) / len(cells)
    place = joint.sum((1, 2), keepdims=True)
    expected = joint.sum(2, keepdims=True) * joint.sum(1, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log((joint * place)[there] / expected[there])).sum())


def agreement(shared: NDArray[np.float64], looks: Sequence[str]) -> NDArray[np.float64]:
    """Return the mean information (n,) that each segmentation shares with those that look at images in another way.

    Args:
        shared: of each two, (n, n), see `shared_information`.
        looks: what each looks at images by. Where a segmentation has no other look beside it, all others count.
    """
    count = len(shared)
    differ = np.array([[one != other for other in looks] for one in looks])
    others = np.where(differ.any(1, keepdims=True), differ, ~np.eye(count, dtype=bool))
    means: NDArray[np.float64] = (shared * others).sum(1) / np.maximum(others.sum(1), 1)
    return means
