"""Automatic shifts: the three numbers of STEGO that have to fit the data, measured on the data.

A shift b splits the pairs of points: codes are drawn together where the feature correspondence F exceeds b
and pushed apart elsewhere. The loss is at its best for a labelling if b splits the pairs of one class from
the others; the authors advise users likewise to make similarities look as comparing labels would (their issue
23). How many pairs are of one class follows from the classes:

- Two points of unrelated images share one of K equally frequent classes with probability 1 / K.
- An image shows only some of the classes, and so does its neighbour, which shows the same scene. Between one
  and K, sqrt(K) of them is the middle in proportion: the probability is 1 / sqrt(K).

The shift of each kind of pair is the quantile of F that leaves this share of pairs above it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from unsupseg_cli.methods.stego.pairs import KINDS


def same_class_shares(classes: int) -> dict[str, float]:
    """Return the share of pairs that are expected to be of one class, by kind, in (0, 1]."""
    image = classes**-0.5
    return {"self": image, "knn": image, "rand": 1 / classes}


def automatic_shifts(correspondences: Mapping[str, Tensor], classes: int) -> dict[str, float]:
    """Return the shift of each kind from samples of its centred feature correspondences (any shape)."""
    shares = same_class_shares(classes)
    shifts = {}
    for kind in KINDS:
        ordered = correspondences[kind].flatten().sort().values
        shifts[kind] = float(ordered[min(len(ordered) - 1, int((1 - shares[kind]) * len(ordered)))])
    return shifts


def attracted(correspondences: Mapping[str, Tensor], shifts: Mapping[str, float]) -> dict[str, float]:
    """Return the share of pairs above the shift, by kind, in [0, 1]."""
    return {kind: float((correspondences[kind] > shifts[kind]).double().mean()) for kind in KINDS}
