"""Where a method's tokens come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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


class MemorySource:
    """Tokens that lie in memory: for the Python API and tests."""

    def __init__(self, tokens: Sequence[Tensor]) -> None:
        self._tokens = [view.float() for view in tokens]

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


class DeviceSource:
    """The tokens of another source, moved to a device."""

    def __init__(self, source: TokenSource, device: torch.device) -> None:
        self._source, self._device = source, device

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
        return [view.to(self._device) for view in self._source.tokens(views)]


def flat_batches(source: TokenSource, views_per_batch: int = 32) -> Iterator[Tensor]:
    """Yield all tokens of a source once, in order, as (n, C) float32."""
    count = len(source.grids)
    for start in range(0, count, views_per_batch):
        views = range(start, min(start + views_per_batch, count))
        yield torch.cat([view.reshape(-1, source.dim) for view in source.tokens(list(views))])


def sample_tokens(source: TokenSource, limit: int, seed: int) -> Tensor:
    """Return up to ``limit`` tokens (n, C) drawn evenly over all views without replacement.

    Every view gives the same share of its cells, so that large images count by their area.
    """
    total = int(source.grids.prod(1).sum())
    share = min(1.0, limit / total)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for batch in flat_batches(source):
        keep = max(1, round(share * len(batch)))
        chosen = torch.randperm(len(batch), generator=generator)[:keep].sort().values
        parts.append(batch if share == 1.0 else batch[chosen])
    return torch.cat(parts)
