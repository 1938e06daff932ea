"""Which points of which images a step compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.methods.stego.config import TrainOptions
from unsupseg_cli.methods.stego.network import Rows
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


def by_grid(maps: Sequence[Tensor], apply: Callable[[Tensor, list[int]], Tensor]) -> list[Tensor]:
    """Apply a function to the maps (h, w, C) of each grid together, and return its rows in the given order.

    ``apply`` gets maps (b, h, w, C) with their positions and returns (b, ...).
    """
    rows: dict[int, Tensor] = {}
    for members in indices_by(values.shape for values in maps).values():
        result = apply(torch.stack([maps[position] for position in members]), members)
        rows.update(zip(members, result.unbind(0), strict=True))
    return [rows[position] for position in range(len(maps))]


def apply_to_share(
    apply: Callable[[Tensor, Rows], Tensor],
    maps: Sequence[Tensor],
    places: Sequence[int],
    grids: Sequence[Sequence[int]],
) -> list[Tensor]:
    """Apply a function to the maps (h, w, C) of some images of a batch, those of each grid together.

    Args:
        apply: gets maps (b, h, w, C), and which rows they are among all of that grid in the batch: it may draw random
            numbers for all of them, and is called for every grid, without maps too.
        maps: of the images at ``places``.
        places: of the images in the batch.
        grids: rows and columns of every map of the batch.
    """
    own = dict(zip(places, maps, strict=True))
    results: dict[int, Tensor] = {}
    for (height, width), members in indices_by((int(h), int(w)) for h, w in grids).items():
        rows = [row for row, place in enumerate(members) if place in own]
        stacked = [own[members[row]] for row in rows]
        empty = maps[0].new_empty(0, height, width, maps[0].shape[-1])
        result = apply(torch.stack(stacked) if stacked else empty, (rows, len(members)))
        results.update(zip((members[row] for row in rows), result.unbind(0), strict=True))
    return [results[place] for place in places]


def _sample_at(maps: Sequence[Tensor], points: Tensor) -> Tensor:
    return torch.stack(by_grid(maps, lambda stacked, members: sample(stacked, points[members])))
