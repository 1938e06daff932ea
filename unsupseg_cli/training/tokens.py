"""Where a method's tokens come from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.progress import Reporter, Silent

_VIEWS_AT_ONCE = 32  # that are read together


class TokenSource(Protocol):
    """Patch tokens by view: from a store, or live from images through the frozen backbone."""

    @property
    def dim(self) -> int:
        """Channels C of a token."""

    @property
    def grids(self) -> NDArray[np.int64]:
        """Rows and columns of each view, (N, 2)."""

    def tokens(self, views: Sequence[int]) -> list[Tensor]:
        """Return the tokens of some views, each (h, w, C) float32."""

    def array(self, name: str, views: Sequence[int]) -> list[Tensor]:
        """Return an array of some views: ``query``, ``key`` (h, w, C), ``attention`` (h, w, heads), ``cls`` (C,)."""


class MemorySource:
    """Tokens that lie in memory: for the Python API and tests.

    Args:
        tokens: of each view, (h, w, C).
        arrays: other arrays by name, an entry for each view.
    """

    def __init__(
        self, tokens: Sequence[Tensor], arrays: Mapping[str, Sequence[Tensor]] | None = None
    ) -> None:
        self._tokens = [view.float() for view in tokens]
        self._arrays = dict(arrays or {})

    @property
    def dim(self) -> int:
        """Channels C of a token."""
        return int(self._tokens[0].shape[-1])

    @property
    def grids(self) -> NDArray[np.int64]:
        """Rows and columns of each view, (N, 2)."""
        return np.array([view.shape[:2] for view in self._tokens], np.int64)

    def tokens(self, views: Sequence[int]) -> list[Tensor]:
        """Return the tokens of some views, each (h, w, C) float32."""
        return [self._tokens[view] for view in views]

    def array(self, name: str, views: Sequence[int]) -> list[Tensor]:
        """Return an array of some views, as it was given; raises KeyError for an unknown name."""
        return [self._arrays[name][view] for view in views]


class DeviceSource:
    """The declared arrays of another source, moved to a device.

    Args:
        source: where the arrays lie.
        device: where they go.
        arrays: the ones that may be read.
    """

    def __init__(
        self, source: TokenSource, device: torch.device, arrays: Collection[str] = ("patch",)
    ) -> None:
        self._source, self._device, self._arrays = source, device, arrays

    @property
    def dim(self) -> int:
        """Channels C of a token."""
        return self._source.dim

    @property
    def grids(self) -> NDArray[np.int64]:
        """Rows and columns of each view, (N, 2)."""
        return self._source.grids

    def tokens(self, views: Sequence[int]) -> list[Tensor]:
        """Return the tokens of some views, each (h, w, C) float32 on the device."""
        self._require("patch")
        return [view.to(self._device) for view in self._source.tokens(views)]

    def array(self, name: str, views: Sequence[int]) -> list[Tensor]:
        """Return an array of some views, on the device; raises UnsupsegError for one that was not declared."""
        self._require(name)
        return [view.to(self._device) for view in self._source.array(name, views)]

    def _require(self, name: str) -> None:
        if name not in self._arrays:
            raise UnsupsegError(
                f"The array '{name}' of the features is read but not declared (declared: {', '.join(self._arrays)}): "
                "name it in the `Needs` of the part."
            )


class ViewsSource:
    """Some views of another source, counted from 0."""

    def __init__(self, source: TokenSource, views: Sequence[int]) -> None:
        self._source, self._views = source, views

    @property
    def dim(self) -> int:
        """Channels C of a token."""
        return self._source.dim

    @property
    def grids(self) -> NDArray[np.int64]:
        """Rows and columns of each view, (N, 2)."""
        return self._source.grids[self._views]

    def tokens(self, views: Sequence[int]) -> list[Tensor]:
        """Return the tokens of some views, each (h, w, C) float32."""
        return self._source.tokens([self._views[view] for view in views])

    def array(self, name: str, views: Sequence[int]) -> list[Tensor]:
        """Return an array of some views, as the source gives it."""
        return self._source.array(name, [self._views[view] for view in views])


def flat_batches(
    source: TokenSource,
    views_per_batch: int = _VIEWS_AT_ONCE,
    reporter: Reporter | None = None,
    description: str = "read tokens",
) -> Iterator[Tensor]:
    """Yield all tokens of a source once, in order, as (n, C) float32; a reporter is told the progress."""
    count = len(source.grids)
    starts = range(0, count, views_per_batch)
    for start in (reporter or Silent()).track(starts, description, total=len(starts)):
        views = range(start, min(start + views_per_batch, count))
        yield torch.cat([view.reshape(-1, source.dim) for view in source.tokens(list(views))])


def sample_tokens(source: TokenSource, limit: int, seed: int, reporter: Reporter | None = None) -> Tensor:
    """Return up to ``limit`` tokens (n, C), see `draw_tokens`."""
    return draw_tokens(source, limit, seed, reporter)[0]


def draw_tokens(
    source: TokenSource, limit: int, seed: int, reporter: Reporter | None = None, within: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return up to ``limit`` tokens (n, C) drawn evenly over all views without replacement, and their views (n,).

    Every view gives the same share of its cells, so that large images count by their area; where views are many times
    as many as tokens, some give one and are read. A reporter is told the progress. ``within`` tells of the cells of all
    views, in their order, which may be drawn.
    """
    cells = source.grids.prod(1)
    groups = [
        range(start, min(start + _VIEWS_AT_ONCE, len(cells)))
        for start in range(0, len(cells), _VIEWS_AT_ONCE)
    ]
    lengths = [int(cells[group.start : group.stop].sum()) for group in groups]
    allowed = lengths if within is None else [int(part.sum()) for part in torch.split(within, lengths)]
    keeps = _even_shares(allowed, limit)
    generator = torch.Generator().manual_seed(seed)
    # Filled in place: memory holds the sample once and some views, however many tokens there are.
    sample, numbers, start, filled = torch.empty(0), torch.empty(sum(keeps), dtype=torch.int64), 0, 0
    steps = (reporter or Silent()).track(groups, "read tokens", total=len(groups))
    for group, length, keep in zip(steps, lengths, keeps, strict=True):
        places = torch.arange(length)
        if within is not None:
            places = places[within[start : start + length]]
        start += length
        if not keep:
            continue
        chosen = places[torch.randperm(len(places), generator=generator)[:keep].sort().values]
        tokens, views = _read_places(source, group, cells[group.start : group.stop], chosen)
        if not filled:
            sample = tokens.new_empty(sum(keeps), source.dim)
        sample[filled : filled + keep], numbers[filled : filled + keep] = tokens, views
        filled += keep
    return sample, numbers.to(sample.device)


def _even_shares(counts: Sequence[int], limit: int) -> list[int]:
    """Return how many tokens each group of views gives, the same share of its own: one at least while that is few."""
    share = min(1.0, limit / max(1, sum(counts)))
    if len(counts) <= limit:
        return [min(count, max(1, round(share * count))) for count in counts]
    ends = np.floor(
        np.cumsum(counts) * share + 1e-6
    )  # what is short of a whole token counts for the next group
    return [int(keep) for keep in np.diff(ends, prepend=0)]


def _read_places(
    source: TokenSource, group: range, cells: NDArray[np.int64], chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the tokens (n, C) at places (n,), in order, of the cells of a group of views, and their views (n,)."""
    places = chosen.numpy()
    owners = np.repeat(np.arange(len(group)), cells)[places]
    inside = places - (cells.cumsum() - cells)[owners]
    views, first = np.unique(owners, return_index=True)
    read = source.tokens([group[view] for view in views.tolist()])
    of_views = zip(read, np.split(inside, first[1:]), strict=True)
    tokens = torch.cat([view.flatten(0, 1)[torch.from_numpy(cell)] for view, cell in of_views])
    return tokens, torch.from_numpy(owners) + group.start


def shuffled_batches(source: TokenSource, batch: int, seed: int) -> Iterator[Tensor]:
    """Yield the tokens (n, C) of batches of views in a random order; a last one that is not full is left out."""
    views = len(source.grids)
    order = torch.randperm(views, generator=torch.Generator().manual_seed(seed)).tolist()
    size = min(batch, views)
    for start in range(0, views - size + 1, size):
        yield torch.cat([view.flatten(0, 1) for view in source.tokens(order[start : start + size])])
