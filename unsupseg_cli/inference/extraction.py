"""Images -> arrays of a network, block by block: what `extract` does between its options and its artifact."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.artifacts.arrays import RowReader, write_array
from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.files import require_space
from unsupseg_cli.artifacts.grids import GridReader, GridWriter, array_bytes, bytes_needed, views_per_block
from unsupseg_cli.contents.features import GRID_DTYPES, write_views
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.data.datasets import Dataset
from unsupseg_cli.data.geometry import Geometry, View
from unsupseg_cli.data.images import UnreadableImage, image_size
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.loader import Failed, load_views, resolve_workers
from unsupseg_cli.models.backbone import Backbone
from unsupseg_cli.models.memory import fitting_batch, with_backoff

_CPU_BATCH = 16  # more gains nothing on a CPU and a fixed size keeps results independent of free memory
_GPU_BATCH = 64
_DROPPING = "dropping"  # the part that says that rows are being taken out of the finished arrays

Embed = Callable[[NDArray[np.uint8]], dict[str, Tensor]]


@dataclass(frozen=True)
class Network:
    """What embeds images (B, H, W, 3) uint8: the arrays ``keep`` by name, on ``device``; ``backbone`` is its base."""

    backbone: Backbone
    embed: Embed
    keep: tuple[str, ...]
    device: torch.device


def default_batch(device: torch.device) -> int:
    """Return the most images at a time where none is asked for."""
    return _CPU_BATCH if device.type == "cpu" else _GPU_BATCH


@dataclass(frozen=True)
class Layout:
    """The views of the readable images, and the images that are not readable."""

    items: list[Item]
    views: list[tuple[int, View]]
    skipped: dict[str, str]

    def grids(self, patch: int) -> NDArray[np.int64]:
        """Return the token grid of each view, (N, 2)."""
        return np.array([[view.height // patch, view.width // patch] for _, view in self.views], np.int64)


def lay_out_views(dataset: Dataset, geometry: Geometry, patch: int, strict: bool) -> Layout:
    """Read the size of every image from its header and lay out its views.

    Raises:
        UnsupsegError: an image is unreadable and ``strict`` is set, or none is readable.
    """
    items: list[Item] = []
    views: list[tuple[int, View]] = []
    skipped: dict[str, str] = {}
    for item in dataset.items:
        try:
            height, width = image_size(item.image)
        except UnreadableImage as error:
            _skip(skipped, item, str(error), strict)
            continue
        views += [(len(items), view) for view in geometry.views(height, width, patch)]
        items.append(item)
    if not items:
        example = next(iter(skipped.values()), "")
        raise UnsupsegError(f"No image of '{dataset.root}' is readable; the first reason: {example}")
    return Layout(items, views, skipped)


def _skip(skipped: dict[str, str], item: Item, reason: str, strict: bool) -> None:
    if strict:
        raise UnsupsegError(f"{reason} (--strict stops at the first unreadable image).")
    skipped[item.key] = reason


class Extraction:
    """One run of the stage: blocks of images in, blocks of arrays out, each finished block kept.

    Of ``shard`` (i, n) the blocks i - 1, i - 1 + n, ... are made. The files are laid out on construction.
    """

    def __init__(
        self,
        draft: Draft,
        context: Context,
        dataset: Dataset,
        geometry: Geometry,
        network: Network,
        *,
        strict: bool,
        store: str,
        batch_size: int | None,
        workers: int | None,
        shard: tuple[int, int],
    ) -> None:
        self.draft, self.context, self.geometry, self.shard = draft, context, geometry, shard
        self.strict, self.store, self.workers = strict, store, workers
        self.backbone, self.embed, self.keep = network.backbone, network.embed, network.keep
        backbone, device = network.backbone, network.device
        self.layout = lay_out_views(dataset, geometry, backbone.patch_size, strict)
        self.grids = self.layout.grids(backbone.patch_size)
        tokens = int(self.grids.prod(1).max())
        most = batch_size or default_batch(device)
        self.batch = batch_size or fitting_batch(tokens, backbone.dim, device, most)
        self.per_item = len(self.layout.views) // len(self.layout.items)
        draft.deterministic = device.type == "cpu"
        if draft.is_done(_DROPPING):
            draft.clear()  # a call was killed while it rewrote the arrays
        self._lay_out()

    def _lay_out(self) -> None:
        arrays = self._trial_arrays()
        grid_arrays = {
            name: self._channels(name, value) for name, value in arrays.items() if name in GRID_DTYPES
        }
        sizes = [(self.grids, shape, GRID_DTYPES[name]) for name, shape in grid_arrays.items()]
        self.needed = sum(bytes_needed(*size) for size in sizes)
        packed = sum(array_bytes(*size) for size in sizes) if self.store == "hdf5" else 0
        require_space(self.draft.folder, self.needed + packed, f"Features of {len(self.grids):,} views")
        largest = max(grid_arrays.values(), default=(1,))
        views = views_per_block(self.grids, largest, np.float16)
        self.items_per_block = max(1, views // self.per_item)
        self.writers = {
            name: GridWriter(
                self.draft.folder,
                name,
                self.grids,
                shape,
                GRID_DTYPES[name],
                min(self.items_per_block * self.per_item, len(self.grids)),
            )
            for name, shape in grid_arrays.items()
        }
        self.vectors = [name for name in self.keep if name not in GRID_DTYPES]
        self.blocks = range(0, len(self.layout.items), self.items_per_block)

    def write(self) -> None:
        """Make the blocks of this shard that are not finished yet.

        Raises:
            UnsupsegError: an array has NaN or infinite values, or an image is unreadable and ``strict`` is set.
        """
        index, shards = self.shard
        shard_blocks = list(enumerate(self.blocks))[index - 1 :: shards]
        todo = [(i, start) for i, start in shard_blocks if not self.draft.is_done(_part(i))]
        if len(todo) < len(shard_blocks):
            self.context.reporter.info(f"going on after {len(shard_blocks) - len(todo)} finished blocks")
        for (block, _), (arrays, failed) in zip(todo, self._embed_blocks(shard_blocks, todo), strict=True):
            for name, writer in self.writers.items():
                writer.write(block, arrays[name])
            for name in self.vectors:
                np.save(self.draft.folder / f".{name}-{block:06d}.npy", np.stack(arrays[name]))
            self.draft.finish(_part(block), failed)

    def missing(self) -> int:
        """Return how many blocks, of all shards, are not finished."""
        return sum(not self.draft.is_done(_part(block)) for block in range(len(self.blocks)))

    def _trial_arrays(self) -> dict[str, Tensor]:
        """Return the arrays of a black image of 2 x 2 patches: they tell the channels."""
        patch = self.backbone.patch_size
        return self.embed(np.zeros((1, 2 * patch, 2 * patch, 3), np.uint8))

    @staticmethod
    def _channels(name: str, value: Tensor) -> tuple[int, ...]:
        return (value.shape[1],) if name == "attention" else (value.shape[-1],)

    def _embed_blocks(
        self, shard_blocks: Sequence[tuple[int, int]], todo: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[dict[str, list[NDArray[Any]]], dict[str, str]]]:
        """Yield the arrays of each block, in order; the loader reads ahead over block borders."""
        indices = [item for _, start in todo for item in self._items(start)]
        loaded = load_views(
            self.layout.items,
            self.geometry,
            self.backbone.patch_size,
            workers=resolve_workers(self.workers),
            indices=indices,
        )
        total = sum(len(self._items(start)) for _, start in shard_blocks)
        first = total - len(indices)
        tracked = iter(self.context.reporter.track(loaded, "extract", total=total, done=first))
        for _, start in todo:
            images: list[NDArray[np.uint8]] = []
            failed: dict[str, str] = {}
            for item in self._items(start):
                result = next(tracked)
                if isinstance(result, Failed):
                    _skip(failed, self.layout.items[item], result.message, self.strict)
                    images += [
                        np.zeros((*self._view_size(item, k), 3), np.uint8) for k in range(self.per_item)
                    ]
                else:
                    images += [image for _, image in result.views]
            yield self._embed_images(images), failed
        for _ in tracked:
            pass

    def _items(self, start: int) -> range:
        """Return the items of the block that begins at ``start``."""
        return range(start, min(start + self.items_per_block, len(self.layout.items)))

    def _view_size(self, item: int, crop: int) -> tuple[int, int]:
        view = self.layout.views[item * self.per_item + crop][1]
        return view.height, view.width

    def _embed_images(self, images: list[NDArray[np.uint8]]) -> dict[str, list[NDArray[Any]]]:
        """Embed images batch by batch, images of one size together, and return rows in the given order."""
        rows: dict[str, list[Any]] = {name: [None] * len(images) for name in self.keep}
        for members in indices_by(image.shape for image in images).values():

            def run(part: Sequence[int]) -> list[dict[str, NDArray[Any]]]:
                out = self.embed(np.stack([images[index] for index in part]))
                arrays = {name: self._to_rows(name, out[name]) for name in self.keep}
                return [{name: array[i] for name, array in arrays.items()} for i in range(len(part))]

            for index, row in zip(members, with_backoff(run, members, self.batch), strict=True):
                for name, value in row.items():
                    rows[name][index] = value
        return rows

    def _to_rows(self, name: str, value: Tensor) -> NDArray[Any]:
        if not bool(torch.isfinite(value).all()):
            raise UnsupsegError(
                f"The backbone '{self.backbone.name}' gave NaN or infinite values in '{name}'; try --precision "
                "fp32, or check the weights file."
            )
        if name == "attention":
            value = value.movedim(1, -1)
        return value.float().cpu().numpy().astype(GRID_DTYPES.get(name, np.float32))

    def close(self) -> dict[str, Any]:
        """Join the blocks and return the summary; raises UnsupsegError where no image was readable."""
        folder, blocks = self.draft.folder, range(len(self.blocks))
        for writer in self.writers.values():
            writer.close()
        for name in self.vectors:
            parts = [np.load(folder / f".{name}-{block:06d}.npy", allow_pickle=False) for block in blocks]
            write_array(folder / name, np.concatenate(parts))
        failed: dict[str, str] = {}
        for block in blocks:
            failed.update(self.draft.note(_part(block)))
        views = [
            (item, view) for item, view in self.layout.views if self.layout.items[item].key not in failed
        ]
        if not views:
            raise UnsupsegError(f"No image is readable; the first reason: {next(iter(failed.values()))}")
        if failed:
            self._drop_failed(failed)
        write_views(folder, self.layout.items, views)
        skipped = {**self.layout.skipped, **failed}
        if skipped:
            examples = ", ".join(list(skipped)[:5])
            self.draft.warnings.append(
                f"{len(skipped)} unreadable images were skipped ({examples}{', ...' if len(skipped) > 5 else ''}); "
                "the manifest lists them"
            )
        if self.backbone.name == "untrained":
            self.draft.warnings.append(
                "the backbone 'untrained' has random weights: it shows the pipeline, not what features can do"
            )
        return {
            "images": len({item for item, _ in views}),
            "views": len(views),
            "backbone": self.backbone.name,
            "patch_size": self.backbone.patch_size,
            "dim": int(self.backbone.dim),
            "weights_digest": self.backbone.weights_digest,
            "skipped": skipped,
            "data_bytes": self.needed,
        }

    def _drop_failed(self, failed: dict[str, str]) -> None:
        """Rewrite the arrays without the rows of images that turned out unreadable while decoding (rare)."""
        good = [
            i for i, (item, _) in enumerate(self.layout.views) if self.layout.items[item].key not in failed
        ]
        folder = self.draft.folder
        self.draft.finish(_DROPPING)
        for name in self.keep:
            old = folder / f"{name}.all"
            for suffix in ("", "_offset", "_grid"):
                if (folder / f"{name}{suffix}").exists():
                    (folder / f"{name}{suffix}").rename(folder / f"{name}.all{suffix}")
            if name in GRID_DTYPES:
                reader = GridReader(folder, old.name)
                grids = self.grids[good]
                size = views_per_block(grids, reader.channels, GRID_DTYPES[name])
                writer = GridWriter(folder, name, grids, reader.channels, GRID_DTYPES[name], size)
                for block, start in enumerate(range(0, len(good), size)):
                    writer.write(block, reader.take(good[start : start + size]))
                writer.close()
            else:
                write_array(folder / name, RowReader(old).take(good))
            _remove(folder, old.name)


def _part(block: int) -> str:
    return f"block-{block:06d}"


def _remove(folder: Path, name: str) -> None:
    for suffix in ("", "_offset", "_grid"):
        shutil.rmtree(folder / f"{name}{suffix}", ignore_errors=True)
