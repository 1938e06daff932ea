"""Which of several segmentations of the same images is better, without labels.

Nobody knows which one is right. But borders of classes that lie where colours change are rarely by chance. And what two
segmentations find that look at the images in different ways (other blocks, backbones, conditionings) is more likely in
the images than in the features: what counts is the share of what one tells that others confirm. Two that divide every
image into the same quarters agree as well, and say nothing: so it is taken of what is left when the place is known. And
where the place tells nothing of the images' colours, as in aerial images, what it tells of the classes counts against
them.

Source: choosing among models by their agreement is Duan et al., "Unsupervised model selection for variational
disentangled representation learning", ICLR 2020; conditional mutual information: Cover and Thomas, "Elements of
information theory" (2006), section 2.5. Conditioning on the place, and the product of the figures, are ours:
`benchmarks/label_free.py` measures them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from unsupseg_cli.metrics.confusion import Confusion

ALIKE = 0.99
"""Share of the cells in which two segmentations are one: what differs is less than from seed to seed."""
PLACES = 8
"""Cells of an image's side that a place is told by."""
_NOTHING = 1e-9  # nats
_ENOUGH = 200_000  # cells of maps that are compared: more change the third digit


def criterion(
    contrast: NDArray[np.float64],
    agreement: NDArray[np.float64],
    placed: NDArray[np.float64],
    has_place: bool,
) -> NDArray[np.float64]:
    """Return how good segmentations are, (n,): the contrast at their borders times their agreement.

    Args:
        contrast: of each, see `border_contrast`.
        agreement: of each, see `agreement`.
        placed: what the place tells of each, see `told_by_place`.
        has_place: whether place matters in the images; else each value loses its part that the place tells, squared.
    """
    values: NDArray[np.float64] = contrast * agreement
    return values if has_place else values * (1 - placed) ** 2


def agreement(
    confirmed: NDArray[np.float64], looks: Sequence[str], groups: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Return the share (n,), in [0, 1], of each segmentation that those confirm which look at images in another way.

    Args:
        confirmed: of each by each, (n, n), see `confirmed_information`.
        looks: what each looks at images by. Where a segmentation has no other look beside it, all others count.
        groups: of each, see `alike`: those of a group count as one, which looks in the ways of all of them; None: each
            is one of its own. Where all are of one group, all others count.
    """
    count = len(confirmed)
    group = np.arange(count) if groups is None else np.asarray(groups)
    ways = [{look for look, other in zip(looks, group, strict=True) if other == own} for own in group]
    differ = np.array([[one.isdisjoint(other) for other in ways] for one in ways])
    apart = group[:, None] != group
    others = np.where(differ.any(1, keepdims=True), differ, apart)
    others = np.where(others.any(1, keepdims=True), others, ~np.eye(count, dtype=bool))
    weights = others / (group[:, None] == group).sum(0)
    means: NDArray[np.float64] = (confirmed * weights).sum(1) / np.maximum(weights.sum(1), _NOTHING)
    return means


def alike(maps: NDArray[np.int16]) -> list[int]:
    """Return for each segmentation the first one that divides the images as it does, but for the classes' names.

    Two do where `ALIKE` of the cells have classes that go together, one to one. Of these one was found in another way
    only by name (tokens of images a pixel smaller, say), so that their agreement says nothing.

    Args:
        maps: classes from 0, (n, images, S, S), all of the same images.
    """
    flat, firsts = maps.reshape(len(maps), -1), list[int]()
    for number, own in enumerate(flat):
        same = (first for first in sorted(set(firsts)) if _share_alike(own, flat[first]) >= ALIKE)
        firsts.append(next(same, number))
    return firsts


def _share_alike(one: NDArray[np.int16], other: NDArray[np.int16]) -> float:
    """Return the share of cells whose classes go together, one to one."""
    counts = Confusion(int(one.max()) + 1, int(other.max()) + 1)
    counts.update(one, other)
    rows, columns = linear_sum_assignment(counts.matrix, maximize=True)
    return float(counts.matrix[rows, columns].sum() / len(one))


def confirmed_information(maps: NDArray[np.int16], seed: int = 0) -> NDArray[np.float64]:
    """Return the share of what each segmentation tells that each other one tells too, (n, n) in [0, 1].

    It is the mutual information over the entropy of the first, both when the place is known; 0 on the diagonal, and of
    one that tells nothing.

    Args:
        maps: classes from 0, (n, images, S, S) with S a multiple of `PLACES`, all of the same images.
        seed: of the cells that are compared, where there are many.
    """
    count, places = len(maps), _places(maps[0])
    flat = maps.reshape(count, -1).astype(np.int64)
    if len(places) > _ENOUGH:
        chosen = np.random.default_rng(seed).choice(len(places), _ENOUGH, replace=False)
        places, flat = places[chosen], flat[:, chosen]
    confirmed = np.zeros((count, count))
    for one in range(count):
        for other in range(one):
            information, *entropies = _given_place(flat[one], flat[other], places)
            for first, second, entropy in ((one, other, entropies[0]), (other, one, entropies[1])):
                confirmed[first, second] = np.clip(information / entropy, 0, 1) if entropy > _NOTHING else 0.0
    return confirmed


def _given_place(
    one: NDArray[np.int64], other: NDArray[np.int64], places: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Return the mutual information of two labellings (n,) given a third, and the entropy of each, in nats."""
    shape = (PLACES**2, int(one.max()) + 1, int(other.max()) + 1)
    cells = np.ravel_multi_index((places, one, other), shape)
    joint = np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape) / len(cells)
    place = _entropy(joint.sum((1, 2)))
    of_one, of_other = _entropy(joint.sum(2)) - place, _entropy(joint.sum(1)) - place
    return of_one + of_other - (_entropy(joint) - place), of_one, of_other


def told_by_place(maps: NDArray[np.int16]) -> float:
    """Return the share of a segmentation's information that the place in the image tells, in [0, 1].

    Args:
        maps: classes from 0, (images, S, S) with S a multiple of `PLACES`.
    """
    labels = maps.ravel().astype(np.int64)
    shape = (PLACES**2, int(labels.max()) + 1)
    joint = np.bincount(np.ravel_multi_index((_places(maps), labels), shape), minlength=int(np.prod(shape)))
    shares = joint.reshape(shape) / len(labels)
    classes = _entropy(shares.sum(0))
    told = classes + _entropy(shares.sum(1)) - _entropy(shares)
    return float(np.clip(told / classes, 0, 1)) if classes > _NOTHING else 0.0


def _places(maps: NDArray[np.int16]) -> NDArray[np.int64]:
    """Return the number of the place of each cell of maps (images, S, S), flat."""
    side = maps.shape[-1]
    rows, columns = np.mgrid[0:side, 0:side] * PLACES // side
    return np.broadcast_to(rows * PLACES + columns, maps.shape).ravel()


def _entropy(shares: NDArray[np.float64]) -> float:
    """Return the entropy of shares of any shape that sum to 1, in nats."""
    there = shares[shares > 0]
    return float(-(there * np.log(there)).sum())


def border_contrast(maps: NDArray[np.int16], images: NDArray[np.uint8]) -> float:
    """Return how much more colours change from cell to cell at borders of classes than within classes.

    1 is what borders drawn by chance have, and what a segmentation without a border gets.

    Args:
        maps: classes of one segmentation, (images, S, S).
        images: the images at that size, (images, S, S, 3).
    """
    sums, counts = np.zeros(2), np.zeros(2)
    colors = images.astype(np.float32)
    for axis in (1, 2):
        change = np.linalg.norm(np.diff(colors, axis=axis), axis=-1).ravel()
        border = (np.diff(maps, axis=axis) != 0).ravel()
        sums += np.bincount(border, change, 2)
        counts += np.bincount(border, minlength=2)
    if not counts.all() or not sums[0]:
        return 1.0
    within, across = sums / counts
    return float(across / within)
