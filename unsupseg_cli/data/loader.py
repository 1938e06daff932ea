"""Decoding images and rendering their views ahead of the model, in worker processes, in order."""

from __future__ import annotations

import math
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.processes import end_with
from unsupseg_cli.core.threads import usable_cores
from unsupseg_cli.data.geometry import Geometry, View
from unsupseg_cli.data.images import UnreadableImage, read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.views import ViewTable

_AHEAD = 4  # images a worker decodes before they are asked for
_SLOT = (
    1 << 25
)  # bytes of pixels that one of them leaves in shared memory at most; only what is written takes room


@dataclass(frozen=True)
class Loaded:
    """The rendered views of one image, each uint8 (h, w, 3)."""

    item: int
    views: list[tuple[View, NDArray[np.uint8]]]


@dataclass(frozen=True)
class Failed:
    """An image that could not be decoded, and why."""

    item: int
    message: str


Render = Callable[[NDArray[np.uint8], View], NDArray[np.uint8]]
"""Returns what a view shows of an image (H, W, 3), uint8 (h, w, 3)."""


class _Views(Dataset[Loaded | Failed]):
    """All views of an image at a time."""

    def __init__(self, items: Sequence[Item], geometry: Geometry, patch: int, indices: Sequence[int]) -> None:
        self.items, self.geometry, self.patch, self.indices = items, geometry, patch, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Loaded | Failed:
        index = self.indices[position]
        try:
            image = read_image(self.items[index].image, self.items[index].reading)
        except UnreadableImage as error:
            return Failed(index, str(error))
        views = self.geometry.views(image.shape[0], image.shape[1], self.patch)
        return Loaded(index, [(view, self.geometry.render(image, view)) for view in views])


class _Rows(Dataset[Loaded | Failed]):
    """Some rows of a table at a time, of one image; the last image stays decoded, for its next rows."""

    def __init__(
        self, items: Sequence[Item], table: ViewTable, runs: Sequence[range], render: Render
    ) -> None:
        self.items, self.table, self.runs, self.render = items, table, runs, render
        self._last: tuple[int, NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, position: int) -> Loaded | Failed:
        rows = self.runs[position]
        index = int(self.table.item[rows.start])
        if self._last is None or self._last[0] != index:
            try:
                self._last = (index, read_image(self.items[index].image, self.items[index].reading))
            except UnreadableImage as error:
                return Failed(index, str(error))
        views = [self.table[row] for row in rows]
        return Loaded(index, [(view, self.render(self._last[1], view)) for view in views])


@dataclass(frozen=True)
class _Left:
    """The views of one image whose pixels, of these shapes, lie in shared memory, one after the other."""

    item: int
    views: list[View]
    shapes: list[tuple[int, ...]]


class _Shared(Dataset[Any]):
    """Another data set whose pixels workers leave in memory that they share with this process.

    One thread of this process reads a pipe, for all workers. The memory has no name, so that the size of ``/dev/shm``,
    which is small in containers, bounds nothing. Each position has one of ``slots`` places, in turn: the place of one
    that was fetched is free for the position that lies ``slots`` behind it.
    """

    def __init__(self, dataset: Dataset[Loaded | Failed], slots: int) -> None:
        self._dataset, self._slots = dataset, slots
        self._memory: mmap.mmap | None = None
        with suppress(OSError):  # where the address space is bounded all goes through the pipe
            self._memory = mmap.mmap(-1, slots * _SLOT)

    def __len__(self) -> int:
        return len(cast("Sequence[Any]", self._dataset))

    def __getitem__(self, position: int) -> Loaded | Failed | _Left:
        """Load in a worker; what does not fit a place goes through the pipe."""
        loaded = self._dataset[position]
        if self._memory is None or isinstance(loaded, Failed):
            return loaded
        shapes = [pixels.shape for _, pixels in loaded.views]
        fits = sum(map(math.prod, shapes)) <= _SLOT
        if not fits or any(pixels.dtype != np.uint8 for _, pixels in loaded.views):
            return loaded
        places = _cut(self._place(position), shapes)
        for place, (_, pixels) in zip(places, loaded.views, strict=True):
            place[...] = pixels
        return _Left(loaded.item, [view for view, _ in loaded.views], shapes)

    def fetch(self, position: int, told: Loaded | Failed | _Left) -> Loaded | Failed:
        """Return what a worker loaded, in memory of its own."""
        if not isinstance(told, _Left):
            return told
        pixels = self._place(position)[: sum(map(math.prod, told.shapes))].copy()
        return Loaded(told.item, list(zip(told.views, _cut(pixels, told.shapes), strict=True)))

    def _place(self, position: int) -> NDArray[np.uint8]:
        assert self._memory is not None
        return np.frombuffer(self._memory, np.uint8, _SLOT, position % self._slots * _SLOT)


def _cut(pixels: NDArray[np.uint8], shapes: Sequence[tuple[int, ...]]) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of these shapes that lie one after the other in flat memory, as views of it."""
    start = 0
    for shape in shapes:
        yield pixels[start : (start := start + math.prod(shape))].reshape(shape)


def load_views(
    items: Sequence[Item],
    geometry: Geometry,
    patch: int,
    *,
    workers: int,
    indices: Sequence[int] | None = None,
) -> Iterator[Loaded | Failed]:
    """Yield the views of the items at ``indices`` (default all), in that order whatever ``workers`` is.

    With ``workers`` 0 decoding happens in this process. Workers end with this process.

    Raises:
        UnsupsegError: a worker was killed.
    """
    chosen = list(range(len(items))) if indices is None else list(indices)
    return _load(_Views(items, geometry, patch, chosen), len(chosen), workers)


def load_rows(
    items: Sequence[Item], table: ViewTable, runs: Sequence[range], render: Render, *, workers: int
) -> Iterator[Loaded | Failed]:
    """Yield the views of each run of rows of a table, as `load_views` does; a run is of one image."""
    return _load(_Rows(items, table, runs, render), len(runs), workers)


def _load(dataset: Dataset[Loaded | Failed], count: int, workers: int) -> Iterator[Loaded | Failed]:
    workers = min(workers, count // 2)  # a process costs more than a few images
    if workers == 0:
        for position in range(count):
            yield dataset[position]
        return
    # The loader asks for so many positions ahead of the one that it returned.
    shared = _Shared(dataset, workers * _AHEAD + 1)
    loader: DataLoader[Any] = DataLoader(
        shared,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        in_order=True,
        worker_init_fn=partial(_prepare_worker, parent=os.getpid()),
        multiprocessing_context="fork",
    )
    with _stops_held():
        images = iter(loader)  # starts the processes
    try:
        for position, told in enumerate(images):
            yield shared.fetch(position, told)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or str(error).startswith("Caught"):
            raise  # of the worker itself
        raise UnsupsegError(
            "A process that decodes images was killed, perhaps because memory ran out; try fewer --workers, or "
            "--workers 0 to decode without such processes."
        ) from None


@contextmanager
def _stops_held() -> Iterator[None]:
    """Let Ctrl-C wait: while processes start it would be dropped, or end one that does not ignore it yet.

    The handlers are replaced, since a blocked signal would come by way of another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held = {number: handler for number, handler in before.items() if callable(handler)}
    for number in held:
        signal.signal(number, lambda number, frame: pressed.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    for which, frame in pressed[:1]:
        held[signal.Signals(which)](which, frame)


def _prepare_worker(worker: int, parent: int) -> None:
    """Give a worker one thread, leave Ctrl-C to the parent, and end with it."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def resolve_workers(workers: int | None) -> int:
    """Return the number of decoding processes: the cores that may be used, at most 16."""
    return min(16, usable_cores()) if workers is None else workers
