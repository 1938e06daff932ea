"""Batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import psutil
import torch

# More tokens than this in one forward pass cost quadratic memory in attention: about 1400 px at patch 16.
TOKEN_BUDGET = 8192
A = TypeVar("A")
B = TypeVar("B")


def with_backoff(run: Callable[[Sequence[A]], list[B]], items: Sequence[A], batch: int) -> Iterator[B]:
    """Yield ``run``'s results for the items in order, halving the batch whenever memory runs out.

    Raises:
        MemoryError, torch.OutOfMemoryError: a single item does not fit.
    """
    start = 0
    while start < len(items):
        part = items[start : start + batch]
        try:
            results = run(part)
        except (MemoryError, RuntimeError) as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            batch = len(part) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield from results
        start += len(part)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "out of memory" in text or "can't allocate memory" in text
    )


def fitting_batch(tokens: int, dim: int, device: torch.device, most: int) -> int:
    """Return how many images of ``tokens`` tokens fit into a quarter of the free memory, at most ``most``.

    A block holds about sixteen float32 copies of the tokens at once (queries, keys, values, the MLP's
    four-fold width and what autocast converts); attention is computed without its matrix.
    """
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
    return max(1, min(most, int(free // 4 // (16 * 4 * tokens * dim))))
