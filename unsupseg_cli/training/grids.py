"""Maps of several grids, those of one grid together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.models.dropout import Rows
from unsupseg_cli.training.tokens import TokenSource


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


def uniform_points(images: int, count: int, generator: torch.Generator) -> Tensor:
    """Return points (images, count, 2) as x, y, even in [-1, 1]^2: the corners are the outer cells' centres."""
    return 2 * torch.rand(images, count, 2, generator=generator) - 1


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Return maps (B, h, w, C) at points (B, P, 2), interpolated bilinearly: (B, P, C)."""
    points = points.to(maps)[:, None]
    sampled = F.grid_sample(
        maps.movedim(-1, 1), points, "bilinear", padding_mode="border", align_corners=True
    )
    return sampled[:, :, 0].movedim(1, -1)


class CodeSource:
    """The codes of a head as a `TokenSource`."""

    def __init__(self, source: TokenSource, head: nn.Module, codes: int) -> None:
        self._source, self._head, self._dim = source, head, codes

    @property
    def dim(self) -> int:
        """Channels D of a code."""
        return self._dim

    @property
    def grids(self) -> NDArray[np.int64]:
        """Rows and columns of each view, (N, 2)."""
        return self._source.grids

    @torch.no_grad()
    def tokens(self, views: Sequence[int]) -> list[Tensor]:
        """Return the codes of some views, each (h, w, D) float32 on the CPU."""
        tokens = self._source.tokens(views)
        return by_grid(tokens, lambda maps, _: self._head(maps).float().cpu())

    def array(self, name: str, views: Sequence[int]) -> list[Tensor]:
        """Return an array of the source for some views, as it is there: codes have no other arrays."""
        return self._source.array(name, views)
