"""Which points of which images a step compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.methods.stego.config import TrainOptions
from unsupseg_cli.methods.stego.objective import correspondence, derangement, sample, uniform_points

KINDS = ("self", "knn", "rand")


@dataclass(frozen=True)
class Pairs:
    """The random choices of a batch of B images with P points each.

    ``points`` (B, P, 2) are those of the images, ``partner_points`` those of their partners: the neighbour of each,
    and for each derangement in ``orders`` (B,) another image of the batch.
    """

    points: Tensor
    partner_points: Tensor
    orders: Sequence[Tensor]

    @classmethod
    def draw(cls, images: int, config: TrainOptions, generator: torch.Generator) -> Pairs:
        """Draw points and derangements for some images."""
        count = config.feature_samples**2
        points = uniform_points(images, count, generator)
        partner_points = uniform_points(images, count, generator)
        return cls(
            points, partner_points, [derangement(images, generator) for _ in range(config.neg_samples)]
        )

    def correspondences(self, maps: Sequence[Tensor], near: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the kind and the cosines (B, P, P) of each comparison.

        Args:
            maps: features or codes (h, w, C) of the images; grids may differ.
            near: those of their neighbours.
        """
        first = _sample_at(maps, self.points)
        yield "self", correspondence(first, first)
        yield "knn", correspondence(first, _sample_at(near, self.partner_points))
        for order in self.orders:
            others = [maps[index] for index in order.tolist()]
            yield "rand", correspondence(first, _sample_at(others, self.partner_points))


def by_grid(maps: Sequence[Tensor], apply: Callable[[Tensor, list[int]], Tensor]) -> list[Tensor]:
    """Apply a function to the maps (h, w, C) of each grid together, and return its rows in the given order.

    ``apply`` gets maps (b, h, w, C) with their positions and returns (b, ...).
    """
    rows: dict[int, Tensor] = {}
    for members in indices_by(values.shape for values in maps).values():
        result = apply(torch.stack([maps[position] for position in members]), members)
        rows.update(zip(members, result.unbind(0), strict=True))
    return [rows[position] for position in range(len(maps))]


def _sample_at(maps: Sequence[Tensor], points: Tensor) -> Tensor:
    return torch.stack(by_grid(maps, lambda stacked, members: sample(stacked, points[members])))
