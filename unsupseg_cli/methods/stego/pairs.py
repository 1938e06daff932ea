"""Which points of which images a step compares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unsupseg_cli.methods.stego.config import TrainOptions
from unsupseg_cli.methods.stego.objective import correspondence, derangement
from unsupseg_cli.training.grids import by_grid, sample, uniform_points

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

    def correspondences(
        self, maps: Sequence[Tensor], near: Sequence[Tensor], places: Sequence[int] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the kind and the cosines (N, P, P) of each comparison of N images.

        Args:
            maps: features or codes (h, w, C) of all B images; grids may differ.
            near: those of the neighbours of the N images.
            places: which of the B the N images are; default: all.
        """
        chosen = list(range(len(maps)) if places is None else places)
        partner_points = self.partner_points[chosen]
        first = _sample_at([maps[place] for place in chosen], self.points[chosen])
        yield "self", correspondence(first, first)
        yield "knn", correspondence(first, _sample_at(near, partner_points))
        for order in self.orders:
            others = [maps[index] for index in order[chosen].tolist()]
            yield "rand", correspondence(first, _sample_at(others, partner_points))


def _sample_at(maps: Sequence[Tensor], points: Tensor) -> Tensor:
    return torch.stack(by_grid(maps, lambda stacked, members: sample(stacked, points[members])))
