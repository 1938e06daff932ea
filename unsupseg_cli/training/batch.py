"""The views of a step, split over the processes that train together, and what those tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The views of a step, or of a part of it, and which of them are this process's.

    ``whole`` are the views of all processes, in the order in which one process alone takes them, and ``places`` those
    of this process in it; ``share`` in (0, 1] is how much of the batch's loss they make, ``progress`` in [0, 1] how
    much of the run is done, and ``part`` counts the parts of an accumulated step. This is ``process`` of ``processes``.
    """

    step: int
    whole: list[int]
    places: Sequence[int]
    share: float = 1.0
    progress: float = 0.0
    part: int = 0
    process: int = 0
    processes: int = 1

    @classmethod
    def alone(cls, step: int, views: Sequence[int]) -> Batch:
        """Return the batch of a process that trains alone."""
        return cls(step, list(views), range(len(views)))

    @property
    def views(self) -> list[int]:
        """The views of this process."""
        return [self.whole[place] for place in self.places]

    def average(self, value: Tensor, share: float | None = None) -> Tensor:
        """Return the mean over all processes of a tensor, of the same shape in each, without gradient.

        Args:
            value: the mean over what this process has.
            share: how much of everything that is, in [0, 1]; default: the share of the batch.
        """
        if self.processes == 1:
            return value
        total = value.detach() * (self.share if share is None else share)
        dist.all_reduce(total)
        return total

    def gather(self, maps: Sequence[Tensor], grids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the maps of the whole batch, in its order; gradients go back to the process that a map came from.

        Args:
            maps: of this process's views, each (h, w, C).
            grids: rows and columns of the maps of the whole batch.
        """
        if self.processes == 1:
            return list(maps)
        sizes = [int(height) * int(width) for height, width in grids]
        owned = [range(process, len(self.whole), self.processes) for process in range(self.processes)]
        most = max(sum(sizes[place] for place in places) for places in owned)
        rows = torch.cat([values.flatten(0, 1) for values in maps])
        padded = torch.cat([rows, rows.new_zeros(most - len(rows), rows.shape[1])])
        everything: Tensor = _Gather.apply(padded)
        gathered: dict[int, Tensor] = {}
        for process, places in enumerate(owned):
            lengths = [sizes[place] for place in places]
            maps_of = torch.split(everything[process][: sum(lengths)], lengths)
            gathered |= {
                place: values.reshape(*map(int, grids[place]), values.shape[1])
                for place, values in zip(places, maps_of, strict=True)
            }
        return [gathered[place] for place in range(len(self.whole))]


class _Gather(torch.autograd.Function):
    """Rows (n, C) of each of P processes -> (P, n, C) in all of them; gradients are added up and go back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Return everybody's rows."""
        everything = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(everything, rows.contiguous())
        return torch.stack(everything)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of this process's rows, of the losses of all processes."""
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]
