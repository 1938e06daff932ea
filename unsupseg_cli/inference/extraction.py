"""Images -> arrays of a network, block by block: what `extract` does between its options and its artifact."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from torch import Tensor

from unsupseg_cli.artifacts.arrays import RowReader, write_array, write_rows
from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.files import require_space
from unsupseg_cli.artifacts.grids import GridReader, GridWriter, array_bytes, bytes_needed, views_per_block
from unsupseg_cli.contents.features import grid_dtypes, write_views
from unsupseg_cli.contents.int8_tokens import SCALE, ZERO, TokenReader, encode
from unsupseg_cli.contents.skipped import Skipped
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.core.options import WHOLE_VIEWS, StoreDtype
from unsupseg_cli.core.progress import Reporter, duration
from unsupseg_cli.core.shards import Shard
from unsupseg_cli.core.words import are, counted
from unsupseg_cli.data.datasets import Dataset
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import UnreadableImage, image_size, read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.loader import Failed, Render, load_rows, resolve_workers
from unsupseg_cli.data.rasters import is_raster
from unsupseg_cli.data.views import ViewTable, table_of_views
from unsupseg_cli.models.backbone import Backbone
from unsupseg_cli.models.memory import TOKEN_BUDGET, fitting_batch, is_out_of_memory, with_backoff
from unsupseg_cli.report.sheet import grid
from unsupseg_cli.report.token_colors import token_colors

MOST_TOKENS = 8 * TOKEN_BUDGET
"""Tokens of one view that `extract` takes at once; a view of more is refused before any work."""

_CPU_BATCH = 16  # more gains nothing on a CPU and a fixed size keeps results independent of free memory
_GPU_BATCH = 64
_NAMED = 5  # images of a warning
_SMALL_SHARE = 0.25  # of its resolution at which a GeoTIFF is warned of
_TIMED = 3  # forwards
_MOMENT = 0.1  # seconds of a forward from which on a larger batch would tell the same
_RUN_PIXELS = 8_000_000  # that a worker renders at a time: 24 MB
_DRAWN, _SHEET_COLUMNS = 6, 6  # views on the sheet, and pictures in a row of it
_DROPPING = "dropping"  # the part that says that rows are being taken out of the finished arrays

Embed = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Network:
    """What embeds images (B, H, W, 3), uint8 on the host: the arrays ``keep`` by name, on ``device``.

    ``backbone`` is its base.
    """

    backbone: Backbone
    embed: Embed
    keep: tuple[str, ...]
    device: torch.device


class Embedded:
    """The arrays of a block of views on their way from a device to the host.

    On CUDA they are copied into pinned memory behind the computation, for which only `wait` waits. Arrays named in
    ``dtypes`` get that type; of those that become int8, scale and zero go along.
    """

    def __init__(self, device: torch.device, dtypes: Mapping[str, DTypeLike]) -> None:
        self._device, self._cuda, self._dtypes = device, device.type == "cuda", dtypes
        self._groups: list[tuple[Sequence[int], dict[str, Tensor]]] = []
        self._extremes: list[tuple[str, Tensor]] = []
        self._arrived: torch.cuda.Event | None = None

    def stack(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Return images of one size (H, W, 3) as one tensor (B, H, W, 3)."""
        stacked = self._on_host((len(images), *images[0].shape), torch.uint8)
        np.stack(images, out=stacked.numpy())
        return stacked

    def group(self, members: Sequence[int]) -> dict[str, Tensor]:
        """Return where the arrays of the views ``members`` of the block go, which are of one size."""
        self._groups.append((members, {}))
        return self._groups[-1][1]

    def receive(self, group: dict[str, Tensor], name: str, value: Tensor, first: int, count: int) -> None:
        """Ask for a copy of values to the rows from ``first`` on of the ``count`` that an array has in a group."""
        if self._dtypes.get(name) == np.int8:
            codes, scale, zero = encode(value)
            parts = {name: codes, f"{name}{SCALE}": scale, f"{name}{ZERO}": zero}
        else:
            parts = {name: value}
        for part, values in parts.items():
            if part not in group:
                dtype = torch.from_numpy(np.empty(0, self._dtypes.get(part, np.float32))).dtype
                group[part] = self._on_host((count, *values.shape[1:]), dtype)
            group[part][first : first + len(values)].copy_(values, non_blocking=self._cuda)
        extremes = torch.stack(value.aminmax())  # NaN where one value is: one pass, and two numbers to copy
        copied = self._on_host((2,), value.dtype).copy_(extremes, non_blocking=self._cuda)
        self._extremes.append((name, copied))

    def depart(self) -> None:
        """Say that every copy was asked for."""
        if self._cuda:
            self._arrived = torch.cuda.current_stream(self._device).record_event()

    def wait(self) -> list[str]:
        """Wait for the copies; return the names of arrays with NaN or infinite values."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [name for name, extremes in self._extremes if not bool(extremes.isfinite().all())]

    def rows(self, name: str) -> Sequence[NDArray[Any]] | NDArray[Any]:
        """Return a row of an array per view, in the order of the block."""
        if len(self._groups) == 1:
            return self._groups[0][1][name].numpy()
        rows = {
            index: row
            for members, group in self._groups
            for index, row in zip(members, group[name].numpy(), strict=True)
        }
        return [rows[index] for index in range(len(rows))]

    def _on_host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self._cuda)


def default_batch(device: torch.device) -> int:
    """Return the most images at a time where none is asked for."""
    return _CPU_BATCH if device.type == "cpu" else _GPU_BATCH


@dataclass(frozen=True)
class Layout:
    """What is embedded: the readable images, the views of them, how a view is rendered, and what is not readable.

    ``regions`` says that the views are regions, of which an image has any number; ``empty`` are the images that have
    none; ``frames`` is a view of each whole image, where it is them that are rendered instead of the regions;
    ``strips`` are images that are enlarged less than others, see `Geometry.is_strip`; ``shrunk`` are GeoTIFFs of which
    little is seen, by the share of their resolution.
    """

    items: list[Item]
    views: ViewTable
    render: Render
    skipped: Mapping[str, str]
    regions: bool = False
    empty: Sequence[str] = ()
    frames: ViewTable | None = None
    strips: Sequence[str] = ()
    shrunk: Mapping[str, float] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """The names of the images."""
        return [item.key for item in self.items]


def readable_items(items: Iterable[Item], skipped: Skipped) -> tuple[list[Item], list[tuple[int, int]]]:
    """Read the size of every image from its header; return the readable images and their sizes.

    Raises:
        UnsupsegError: an image may not be skipped, see `Skipped`, or none is readable.
    """
    readable: list[Item] = []
    sizes: list[tuple[int, int]] = []
    items = list(items)
    for item in skipped.context.reporter.track(items, "sizes of images", total=len(items)):
        try:
            sizes.append(image_size(item.image, item.reading))
        except UnreadableImage as error:
            skipped.add(item, str(error))
            continue
        readable.append(item)
    if not readable:
        raise UnsupsegError(f"No image is readable; the first reason: {next(iter(skipped.values()), '')}")
    return readable, sizes


def lay_out_views(
    dataset: Dataset, geometry: Geometry, patch: int, skipped: Skipped, *, flip: bool = False
) -> Layout:
    """Lay out the views of every image by a geometry, and with ``flip`` their mirror images after them.

    Raises:
        UnsupsegError: as `readable_items` does.
    """
    items, sizes = readable_items(dataset.items, skipped)
    views = [
        (index, view)
        for index, (height, width) in enumerate(sizes)
        for view in geometry.views(height, width, patch, flip=flip)
    ]
    strips = [item.key for item, size in zip(items, sizes, strict=True) if geometry.is_strip(*size)]
    shrunk = _shrunk(items, sizes, geometry)
    return Layout(items, table_of_views(views), geometry.render, skipped, strips=strips, shrunk=shrunk)


def _shrunk(items: Sequence[Item], sizes: Sequence[tuple[int, int]], geometry: Geometry) -> dict[str, float]:
    """Return the GeoTIFFs that a whole view shows at a small share of their resolution, with this share."""
    if geometry.kind not in WHOLE_VIEWS or geometry.size is None:
        return {}
    shown = min(geometry.size) if isinstance(geometry.size, tuple) else geometry.size
    shares = [(item, shown / min(size)) for item, size in zip(items, sizes, strict=True)]
    return {item.key: share for item, share in shares if share < _SMALL_SHARE and is_raster(item.image)}


def remark_on_strips(keys: Sequence[str]) -> str:
    """Return what the user is told of images that are enlarged less than others."""
    shown = ", ".join(f"'{key}'" for key in keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
    strips = f"{counted(len(keys), 'long and narrow image')} {are(len(keys))}"
    return f"{strips} not enlarged to --size, to bound the tokens: {shown}"


def require_bounded(layout: Layout, patch: int, reporter: Reporter) -> None:
    """Tell the tokens of the views before any work; raises UsageError for a view of more than `MOST_TOKENS`."""
    grids = layout.views.grids(patch)
    if not len(grids):
        return
    tokens = grids.prod(1)
    row = int(tokens.argmax())
    height, width = int(layout.views.height[row]), int(layout.views.width[row])
    largest = int(tokens[row])
    if largest > MOST_TOKENS:
        item = layout.items[int(layout.views.item[row])]
        image, (original_height, original_width) = item.image, image_size(item.image, item.reading)
        raise UsageError(
            f"'{image}' of {original_width}x{original_height} pixels becomes a view of {width}x{height}, which is "
            f"{largest:,} tokens, more than the {MOST_TOKENS:,} that are taken at once: give a smaller --size (0 keeps "
            "the image's own), --geometry squash, five-crop or ten-crop, or cut such images into pieces."
        )
    few = int(tokens.min())
    if layout.strips:
        reporter.warn(remark_on_strips(layout.strips))
    if layout.shrunk:
        key, share = min(layout.shrunk.items(), key=lambda pair: pair[1])
        reporter.warn(
            f"{counted(len(layout.shrunk), 'GeoTIFF')} shown whole at a small share of the resolution ('{key}': "
            f"{100 * share:.0f} %), in which houses and roads vanish: --windows 512 cuts such images"
        )
    range_of = f"{few:,}" if few == largest else f"{few:,} to {largest:,}"
    reporter.info(
        f"to embed: {counted(len(tokens), 'view')} of {range_of} tokens each, {int(tokens.sum()):,} in all; the "
        f"largest is {width}x{height} pixels"
    )


class Extraction:
    """One run of the stage: blocks of views in, blocks of arrays out, each finished block kept.

    Only the blocks of ``shard`` are made. The files are laid out on construction.
    """

    def __init__(
        self,
        draft: Draft,
        context: Context,
        layout: Layout,
        network: Network,
        *,
        strict: bool,
        store: str,
        store_dtype: StoreDtype,
        batch_size: int | None,
        workers: int | None,
        shard: Shard,
    ) -> None:
        self.draft, self.context, self.layout, self.shard = draft, context, layout, shard
        self.strict, self.store, self.workers = strict, store, workers
        self.network, self.backbone, self.embed, self.keep = (
            network,
            network.backbone,
            network.embed,
            network.keep,
        )
        self.dtypes = grid_dtypes(store_dtype)
        device = network.device
        self.views = layout.views
        self.grids = self.views.grids(self.backbone.patch_size)
        self.shown = self.views if layout.frames is None else layout.frames
        tokens = int(self.shown.grids(self.backbone.patch_size).prod(1).max())
        most = batch_size or default_batch(device)
        self.batch = batch_size or fitting_batch(tokens, self.backbone.dim, device, most)
        draft.deterministic = device.type == "cpu"
        if draft.is_done(_DROPPING):
            draft.clear()  # a call was killed while it rewrote the arrays
        self._lay_out()

    def _lay_out(self) -> None:
        arrays = self._trial_arrays()
        grid_arrays = {
            name: self._channels(name, value) for name, value in arrays.items() if name in self.dtypes
        }
        self.vectors = {name: arrays[name].shape[-1] for name in self.keep if name not in self.dtypes}
        for name, (channels,) in grid_arrays.items():
            if self.dtypes[name] == np.int8:
                self.vectors |= {f"{name}{SCALE}": channels, f"{name}{ZERO}": channels}
        sizes = [(self.grids, shape, self.dtypes[name]) for name, shape in grid_arrays.items()]
        self.needed = sum(bytes_needed(*size) for size in sizes)
        packed = sum(array_bytes(*size) for size in sizes) if self.store == "hdf5" else 0
        rows = sum(self.vectors.values()) * len(self.views) * np.dtype(np.float32).itemsize
        what = "Regions" if self.layout.regions else "Features"
        # Rows lie on disk twice for a while: as blocks, and joined.
        require_space(
            self.draft.folder,
            self.needed + packed + 2 * rows,
            f"{what} of {counted(len(self.views), 'view')}",
            "a smaller --size or fewer arrays with --keep",
        )
        block = self._views_per_block(max(grid_arrays.values(), default=(1,)))
        self.writers = {
            name: GridWriter(self.draft.folder, name, self.grids, shape, self.dtypes[name], block)
            for name, shape in grid_arrays.items()
        }
        self.blocks = self._cut(block)

    def _views_per_block(self, channels: tuple[int, ...]) -> int:
        """Return how many views make a block: of whole images where each has the same number of views."""
        views = views_per_block(self.grids, channels, np.float16)
        per_item = 1 if self.layout.regions else len(self.views) // len(self.layout.items)
        return min(max(1, views // per_item) * per_item, len(self.views))

    def _cut(self, block: int) -> list[range]:
        """Return the rows of each block, of ``block`` views but the last one."""
        return [
            range(start, min(start + block, len(self.views))) for start in range(0, len(self.views), block)
        ]

    def write(self) -> None:
        """Make the blocks of this shard that are not finished yet.

        Raises:
            UnsupsegError: an array has NaN or infinite values, or an image is unreadable and ``strict`` is set.
        """
        shard_blocks = self.shard.take(enumerate(self.blocks))
        todo = [(i, rows) for i, rows in shard_blocks if not self.draft.is_done(_part(i))]
        if len(todo) < len(shard_blocks):
            self.context.reporter.info(f"going on after {len(shard_blocks) - len(todo)} finished blocks")
        if self.layout.regions and todo:
            self._announce([self._shown_rows(rows) for _, rows in todo])
        # A block is written while the next one is computed; there is never more than one of each in memory.
        with ThreadPoolExecutor(1, "write") as thread:
            writing: Future[None] | None = None
            for (block, _), result in zip(todo, self._embed_blocks(shard_blocks, todo), strict=True):
                if writing is not None:
                    writing.result()
                writing = thread.submit(self._store, block, *result)
            if writing is not None:
                writing.result()

    def missing(self) -> int:
        """Return how many blocks, of all shards, are not finished."""
        return sum(not self.draft.is_noted(_part(block)) for block in range(len(self.blocks)))

    def _rows_of_block(self, name: str, block: int) -> Path:
        return self.draft.folder / f".{name}-{block:06d}.npy"

    def _announce(self, blocks: Sequence[range]) -> None:
        """Say how many forwards are ahead, and about how long they take on this machine."""
        patch = self.backbone.patch_size
        of_all = self.shown.grids(patch)
        grids = np.concatenate([of_all[rows.start : rows.stop] for rows in blocks])
        rows, columns = (int(side) for side in np.median(grids, axis=0))
        tokens = grids.prod(1).sum() / (rows * columns)  # in forwards of the median size
        seconds = tokens * self._seconds_of_a_forward(rows * patch, columns * patch)
        self.context.reporter.info(
            f"{counted(len(self.views), 'region')} of {counted(len(self.layout.items), 'image')}: {len(grids):,} "
            f"forwards of '{self.backbone.name}' at {rows * patch}x{columns * patch}, about {duration(seconds)}"
        )

    def _seconds_of_a_forward(self, height: int, width: int) -> float:
        """Time batches of black images, larger ones as long as they take a moment; return the seconds of an image."""
        count, least = 1, float("inf")
        while True:
            images = torch.zeros((count, height, width, 3), dtype=torch.uint8)
            try:  # the first call warms up, and other work may slow any of them
                taken = min(self._timed_forward(images) for _ in range(_TIMED))
            except (MemoryError, RuntimeError) as error:
                if count == 1 or not is_out_of_memory(error):
                    raise
                return least
            least = min(least, taken / count)
            if count >= self.batch or taken > _MOMENT:
                return least
            count = min(4 * count, self.batch)

    def _timed_forward(self, images: Tensor) -> float:
        start = time.perf_counter()
        for value in self.embed(images).values():
            value.float().sum().item()  # waits for the device
        return time.perf_counter() - start

    def _trial_arrays(self) -> dict[str, Tensor]:
        """Return the arrays of a black image of 2 x 2 patches: they tell the channels."""
        patch = self.backbone.patch_size
        return self.embed(torch.zeros((1, 2 * patch, 2 * patch, 3), dtype=torch.uint8))

    @staticmethod
    def _channels(name: str, value: Tensor) -> tuple[int, ...]:
        return (value.shape[1],) if name == "attention" else (value.shape[-1],)

    def _embed_blocks(
        self, shard_blocks: Sequence[tuple[int, range]], todo: Sequence[tuple[int, range]]
    ) -> Iterator[tuple[Embedded, dict[str, str]]]:
        """Yield the arrays of each block and the images that failed, in order."""
        total, left = (
            sum(len(self._shown_rows(rows)) for _, rows in blocks) for blocks in (shard_blocks, todo)
        )
        computed = self._compute([rows for _, rows in todo])
        for block in self.context.reporter.track(computed, "extract", total=total, done=total - left):
            if block is not None:
                yield block

    def _compute(self, blocks: Sequence[range]) -> Iterator[tuple[Embedded, Skipped] | None]:
        """Yield once for each image that was computed: its block with the last one, else None.

        The loader reads ahead over the borders of blocks.
        """
        views = self._load([self._shown_rows(rows) for rows in blocks])
        for rows in blocks:
            images: list[NDArray[np.uint8]] = []
            failed, shown = Skipped(self.context, self.strict), self._shown_rows(rows)
            for row in shown:
                image = next(views)
                if isinstance(image, Failed):
                    item = self.layout.items[image.item]
                    if item.key not in failed:
                        failed.add(item, image.message)
                    image = np.zeros((self.shown.height[row], self.shown.width[row], 3), np.uint8)
                images.append(image)
            embedded, done = Embedded(self.network.device, self.dtypes), 0
            for _ in self._embed_images(embedded, images, rows):
                done += 1
                if done < len(shown):
                    yield None
            yield from [None] * (len(shown) - 1 - done)  # images of which nothing is embedded
            embedded.depart()
            yield embedded, failed

    def _load(self, blocks: Sequence[range]) -> Iterator[NDArray[np.uint8] | Failed]:
        """Yield what the views of some blocks show, one after the other."""
        runs = [run for rows in blocks for run in self.shown.runs(rows.start, rows.stop, _RUN_PIXELS)]
        workers = resolve_workers(self.workers)
        loaded = load_rows(self.layout.items, self.shown, runs, self.layout.render, workers=workers)
        for run, result in zip(runs, loaded, strict=True):
            if isinstance(result, Failed):
                yield from [result] * len(run)
            else:
                yield from (image for _, image in result.views)

    def _shown_rows(self, rows: range) -> range:
        """Return the rows of what is rendered for some rows of the views."""
        return rows

    def _embed_images(
        self, embedded: Embedded, images: list[NDArray[np.uint8]], rows: range
    ) -> Iterator[int]:
        """Embed what is shown for some rows, images of one size together; yield something for each when it was."""
        for members in indices_by(image.shape for image in images).values():
            yield from self._embed_group(embedded, members, [images[index] for index in members])

    def _embed_group(
        self, embedded: Embedded, members: Sequence[int], images: list[NDArray[np.uint8]]
    ) -> Iterator[int]:
        """Embed images of one size batch by batch; yield the place of each when it was."""
        group = embedded.group(members)

        def run(part: Sequence[int]) -> list[int]:
            out = self.embed(embedded.stack([images[place] for place in part]))
            for name in self.keep:
                value = out[name].movedim(1, -1) if name == "attention" else out[name]
                embedded.receive(group, name, value, part[0], len(images))
            return list(part)

        yield from with_backoff(run, range(len(images)), self.batch)

    def _store(self, block: int, embedded: Embedded, failed: dict[str, str]) -> None:
        """Write the arrays of a block, which is finished from then on; raises UnsupsegError if one is not finite."""
        if names := embedded.wait():
            raise UnsupsegError(
                f"The backbone '{self.backbone.name}' gave NaN or infinite values in '{names[0]}'; try --precision "
                "fp32, or check the weights file."
            )
        numbers = set(self.views.item[self.blocks[block].start : self.blocks[block].stop].tolist())
        self.context.sources.require_unchanged(self.layout.items[number].image for number in numbers)
        for name, writer in self.writers.items():
            writer.write(block, embedded.rows(name))
        for name in self.vectors:
            np.save(self._rows_of_block(name, block), np.asarray(embedded.rows(name)))
        files = [writer.file(block) for writer in self.writers.values()]
        files += [self._rows_of_block(name, block) for name in self.vectors]
        self.draft.finish(_part(block), failed, files)

    def close(self) -> dict[str, Any]:
        """Join the blocks and return the summary; raises UnsupsegError where no image was readable."""
        folder, blocks = self.draft.folder, range(len(self.blocks))
        joined = [
            writer.file(block) for writer in self.writers.values() if not writer.regular for block in blocks
        ]
        joined += [self._rows_of_block(name, block) for name in self.vectors for block in blocks]
        self.draft.bring(joined)
        for writer in self.writers.values():
            writer.close()
        for name in self.vectors:
            write_rows(folder / name, [self._rows_of_block(name, block) for block in blocks])
        failed: dict[str, str] = {}
        for block in blocks:
            failed.update(self.draft.note(_part(block)))
        keys = self.layout.keys
        readable = np.array([keys[item] not in failed for item in self.views.item.tolist()])
        if not readable.any():
            raise UnsupsegError(f"No image is readable; the first reason: {next(iter(failed.values()))}")
        if failed:
            self._drop_failed(np.flatnonzero(readable))
        views = self.views.take(readable)
        write_views(folder, keys, views, regions=self.layout.regions)
        if "patch" in self.writers and not self.layout.regions:
            self._draw(np.flatnonzero(readable))
        skipped = {**self.layout.skipped, **failed}
        if skipped:
            examples = ", ".join(list(skipped)[:_NAMED]) + (", ..." if len(skipped) > _NAMED else "")
            self.draft.warnings.append(
                f"unreadable images skipped: {len(skipped)} ({examples}); the manifest lists them"
            )
        if empty := self.layout.empty:
            examples = ", ".join(empty[:_NAMED])
            self.draft.warnings.append(f"no region was kept in {counted(len(empty), 'image')} ({examples})")
        if self.backbone.name == "untrained":
            self.draft.warnings.append(
                "the backbone 'untrained' has random weights: it shows the pipeline, not what features can do"
            )
        return {
            "images": len(np.unique(views.item)),
            "views": len(views),
            "backbone": self.backbone.name,
            "patch_size": self.backbone.patch_size,
            "dim": int(self.backbone.dim),
            "weights_digest": self.backbone.weights_digest,
            "skipped": skipped,
            "data_bytes": self.needed,
            **({"empty": list(self.layout.empty)} if self.layout.regions else {}),
        }

    def _draw(self, rows: NDArray[np.int64]) -> None:
        """Write ``sheet.png``: some views, evenly chosen, beside their tokens; of those whose blocks are here."""
        writer, here = self.writers["patch"], np.arange(len(rows))
        if writer.regular:  # else they were joined
            block = here // len(self.blocks[0])
            here = here[
                np.isin(block, [number for number in np.unique(block) if writer.file(number).exists()])
            ]
        if not len(here):  # other machines made them all
            return
        chosen = here[np.linspace(0, len(here) - 1, min(_DRAWN, len(here))).round().astype(int)]
        tokens = TokenReader(self.draft.folder, "patch").take(chosen.tolist())
        colors = token_colors([one.astype(np.float32) for one in tokens])
        try:
            images = [self._image(row) for row in rows[chosen].tolist()]
        except UnreadableImage as error:
            self.context.reporter.info(f"no picture sheet: {error}")
            return
        pictures: list[Image.Image] = []
        for image, picture in zip(images, colors, strict=True):
            pictures += [image, Image.fromarray(picture).resize(image.size, Image.Resampling.NEAREST)]
        starts = range(0, len(pictures), _SHEET_COLUMNS)
        drawn = [pictures[start : start + _SHEET_COLUMNS] for start in starts]
        sheet = grid(drawn, ["image", "tokens"] * (len(drawn[0]) // 2), cell=240)
        sheet.save(self.draft.folder / "sheet.png")

    def _image(self, row: int) -> Image.Image:
        """Return what a view shows."""
        item = self.layout.items[int(self.views.item[row])]
        return Image.fromarray(self.layout.render(read_image(item.image, item.reading), self.views[row]))

    def _drop_failed(self, good: NDArray[np.int64]) -> None:
        """Rewrite the arrays without the rows of images that turned out unreadable while decoding (rare)."""
        folder = self.draft.folder
        self.draft.take_over()
        self.draft.finish(_DROPPING)
        for name in (*self.writers, *self.vectors):
            old = folder / f"{name}.all"
            for suffix in ("", "_offset", "_grid"):
                if (folder / f"{name}{suffix}").exists():
                    (folder / f"{name}{suffix}").rename(folder / f"{name}.all{suffix}")
            if name in self.writers:
                reader = GridReader(folder, old.name)
                grids = self.grids[good]
                size = views_per_block(grids, reader.channels, reader.dtype)
                writer = GridWriter(folder, name, grids, reader.channels, reader.dtype, size)
                for block, start in enumerate(range(0, len(good), size)):
                    writer.write(block, reader.take(good[start : start + size].tolist()))
                writer.close()
            else:
                write_array(folder / name, RowReader(old).take(good))
            _remove(folder, old.name)


def _part(block: int) -> str:
    return f"block-{block:06d}"


def _remove(folder: Path, name: str) -> None:
    for suffix in ("", "_offset", "_grid"):
        shutil.rmtree(folder / f"{name}{suffix}", ignore_errors=True)
