"""extract: images -> features of a frozen backbone, or the codes of a trained model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.artifacts.arrays import RowReader, write_array
from unsupseg_cli.artifacts.files import require_space
from unsupseg_cli.artifacts.grids import GridReader, GridWriter, array_bytes, bytes_needed, views_per_block
from unsupseg_cli.artifacts.manifest import DataSource
from unsupseg_cli.artifacts.workspace import Artifact, Draft, Recipe
from unsupseg_cli.contents.backbone import open_backbone
from unsupseg_cli.contents.features import VIEWS
from unsupseg_cli.contents.images import (
    Context,
    describe_images,
    open_data,
    remember_weights,
    resolve_device,
    resolve_workers,
)
from unsupseg_cli.contents.model import open_model
from unsupseg_cli.contents.model_file import take_model
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.data.datasets import Dataset
from unsupseg_cli.data.geometry import Geometry, View
from unsupseg_cli.data.images import UnreadableImage, image_size
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.loader import Failed, load_views
from unsupseg_cli.models.backbone import Backbone
from unsupseg_cli.models.memory import fitting_batch, with_backoff
from unsupseg_cli.stages.config import WHOLE_VIEWS, ExtractConfig
from unsupseg_cli.training.launch import launch

STAGE_VERSION = 1

# Tokens keep 11 bits in float16, far finer than what clustering resolves; descriptors are few and stay exact.
GRID_DTYPES = {"patch": np.float16, "query": np.float16, "key": np.float16, "attention": np.float16}
_CPU_BATCH = 16  # more gains nothing on a CPU and a fixed size keeps results independent of free memory
_GPU_BATCH = 64
_DROPPING = "dropping"  # the part that says that rows are being taken out of the finished arrays

Embed = Callable[[NDArray[np.uint8]], dict[str, Tensor]]


@dataclass(frozen=True)
class Plan:
    """The views of the readable images, and the images that are not readable."""

    items: list[Item]
    views: list[tuple[int, View]]
    skipped: dict[str, str]

    def grids(self, patch: int) -> NDArray[np.int64]:
        """Return the token grid of each view, (N, 2)."""
        return np.array([[view.height // patch, view.width // patch] for _, view in self.views], np.int64)


def plan_views(dataset: Dataset, geometry: Geometry, patch: int, strict: bool) -> Plan:
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
    return Plan(items, views, skipped)


def _skip(skipped: dict[str, str], item: Item, reason: str, strict: bool) -> None:
    if strict:
        raise UnsupsegError(f"{reason} (--strict stops at the first unreadable image).")
    skipped[item.key] = reason


def extract(config: ExtractConfig, context: Context | None = None, *, model: str | None = None) -> Artifact:
    """Store patch tokens, CLS tokens, pooled descriptors and more of every image.

    With ``model`` (a `model` artifact) the codes of its feature heads are stored instead of the backbone's
    tokens, so that any pseudo-labeller can work on top of any head. With ``devices`` above 1 as many processes
    make a shard each; the artifact is the same.

    Raises:
        UsageError: ``devices`` is above 1 and ``context.force`` is set, see `extract_shard`.
        UnsupsegError: one of the processes failed; what is finished stays for the next call.
    """
    context = context or Context()
    recipe, start = _prepare(config, context, model)
    launched = config.devices > 1 and not context.workspace.has(recipe)
    if launched:
        _refuse_force(context, "--devices")
        launch(
            _extract_on_device,
            config,
            context,
            model,
            accelerator=resolve_device(config.device).type,
            devices=config.devices,
        )

    def work(draft: Draft) -> dict[str, Any]:
        job = start(draft)
        job.write()
        return job.close()

    artifact, reused = context.workspace.produce(recipe, work, force=context.force)
    _say_store(config, artifact, context)
    return context.say(artifact, reused and not launched)


def _extract_on_device(fabric: Fabric, config: ExtractConfig, context: Context, model: str | None) -> None:
    """Make the shard of one of several processes; the first one reports for all."""
    rank, count = fabric.global_rank, config.devices
    own = config.model_copy(update={"device": str(fabric.device), "devices": 1})
    reporter = context.reporter if fabric.is_global_zero else Silent()
    extract_shard(own, f"{rank + 1}/{count}", replace(context, reporter=reporter), model=model)


def _refuse_force(context: Context, option: str) -> None:
    if context.force:
        raise UsageError(f"{option} and --force do not go together: remove the old features first.")


def extract_shard(
    config: ExtractConfig, shard: str, context: Context | None = None, *, model: str | None = None
) -> Artifact | None:
    """Make one of several processes' share of the features, ``shard`` = "i/n" with i from 1 to n.

    The processes (or machines with a common disk whose file locks work) run independently, each with its own i
    and otherwise equal options. Whichever finishes last publishes the artifact, which is the same as that of
    one process; the others return None. A share that died is made by calling it again, or by a call without
    shards, which goes on with all that is finished.

    Raises:
        UsageError: the shard is not of that form, or ``context.force`` is set: a forced share could not tell the
            shares of this call from those of the last.
    """
    context = context or Context()
    own = parse_shard(shard)
    _refuse_force(context, "--shard")
    if config.devices > 1:
        raise UsageError("--shard and --devices do not go together: give each share a device of its own.")
    recipe, start = _prepare(config, context, model, own)
    name = f"{own[0]}-of-{own[1]}"
    jobs: list[_Extraction] = []

    def begin(draft: Draft) -> _Extraction:
        jobs.append(start(draft))
        return jobs[0]

    artifact, reused = context.workspace.produce_shard(recipe, name, begin)
    if artifact is None:
        left = jobs[0].missing()
        context.reporter.info(
            f"shard {shard} is finished; {left} blocks of other shards are missing: the last of them publishes "
            f"'{recipe.id}'"
        )
        return None
    _say_store(config, artifact, context)
    return context.say(artifact, reused)


def parse_shard(text: str) -> tuple[int, int]:
    """Return i and n of a shard "i/n"; raises UsageError unless 1 <= i <= n."""
    first, _, last = text.partition("/")
    if first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last):
        return int(first), int(last)
    raise UsageError(f"--shard '{text}' is not of the form i/n with i from 1 to n, for example 2/4.")


def _say_store(config: ExtractConfig, artifact: Artifact, context: Context) -> None:
    stored = artifact.manifest.execution.get("store", config.store)
    if stored != config.store:
        context.reporter.info(
            f"'{artifact.id}' is stored as {stored}; --force --store {config.store} makes it again"
        )


def _prepare(
    config: ExtractConfig, context: Context, model: str | None, shard: tuple[int, int] = (1, 1)
) -> tuple[Recipe, Callable[[Draft], _Extraction]]:
    """Return what decides the features, and a function that begins to make them."""
    device = resolve_device(config.device)
    dataset = open_data(config, context)
    source = take_model(model, context) if model is not None else None
    if source is not None:
        opened = open_model(source, context, device, weights=config.weights, precision=config.precision)
        backbone = opened.segmenter.backbone
        _require_position(config, backbone, source)
    else:
        backbone = open_backbone(config, context, device)
        if config.weights is not None:
            remember_weights(backbone.name, config.weights, backbone.weights_digest, context)
    recipe = extract_recipe(
        config,
        describe_images(dataset, context),
        (backbone.name, backbone.precision, backbone.weights_digest),
        device,
        source,
    )
    keep = tuple(recipe.config["keep"])

    def embed(images: NDArray[np.uint8]) -> dict[str, Tensor]:
        if source is not None:
            patch = opened.segmenter.codes(images)
            return {"patch": patch, "pooled": F.normalize(patch.flatten(1, 2).mean(1), dim=-1)}
        batch = backbone.normalise(torch.tensor(images, device=device))
        arrays: dict[str, Tensor] = backbone(batch, keep=keep)
        return arrays

    def start(draft: Draft) -> _Extraction:
        return _Extraction(config, context, draft, dataset, backbone, device, keep, embed, shard)

    return recipe, start


def _require_position(config: ExtractConfig, backbone: Backbone, model: Artifact) -> None:
    """Refuse options that do not go with the place that a model's tokens carry."""
    if config.position not in (0.0, backbone.position):
        raise UsageError(
            f"--position {config.position:g} does not go with '{model.id}', whose tokens were made with "
            f"--position {backbone.position:g}; leave it out."
        )
    if backbone.position and config.geometry not in WHOLE_VIEWS:
        raise UsageError(
            f"The tokens of '{model.id}' carry their place, which needs views of whole images: --geometry "
            f"{' or '.join(WHOLE_VIEWS)}, not {config.geometry}."
        )


def view_geometry(config: ExtractConfig) -> Geometry:
    """Return how the images of a call become views."""
    return Geometry(
        kind=config.geometry, size=config.size or None, filter=config.filter, ratios=config.ratios
    )


def extract_recipe(
    config: ExtractConfig,
    data: DataSource,
    backbone: tuple[str, str, str],
    device: torch.device,
    model: Artifact | None,
) -> Recipe:
    """Return what decides the features; ``backbone`` is its name, its precision and the digest of its weights."""
    name, precision, weights = backbone
    keep = ["patch", "pooled"] if model else list(config.keep)
    return Recipe(
        kind="features",
        stage="extract",
        stage_version=STAGE_VERSION,
        slug=f"{data.dataset}-{data.split}-{model.manifest.config['method'] if model else name}",
        config={**config.result(), "backbone": name, "precision": precision, "keep": keep},
        inputs=[model.as_input("model")] if model else [],
        data=data,
        weights=weights,
        execution={
            "device": str(device),
            "weights": str(config.weights.absolute()) if config.weights else "",
            "batch_size": config.batch_size or _default_batch(device),
            "store": config.store,
        },
        used_labels=model.manifest.used_labels if model else False,
    )


def _default_batch(device: torch.device) -> int:
    return _CPU_BATCH if device.type == "cpu" else _GPU_BATCH


class _Extraction:
    """One run of the stage: blocks of images in, blocks of arrays out, each finished block kept.

    Of ``shard`` (i, n) the blocks i - 1, i - 1 + n, ... are made. The files are laid out on construction.
    """

    def __init__(
        self,
        config: ExtractConfig,
        context: Context,
        draft: Draft,
        dataset: Dataset,
        backbone: Backbone,
        device: torch.device,
        keep: Sequence[str],
        embed: Embed,
        shard: tuple[int, int],
    ) -> None:
        self.config, self.context, self.draft, self.keep = config, context, draft, keep
        self.geometry, self.backbone, self.embed, self.shard = view_geometry(config), backbone, embed, shard
        self.plan = plan_views(dataset, self.geometry, backbone.patch_size, config.strict)
        self.grids = self.plan.grids(backbone.patch_size)
        tokens = int(self.grids.prod(1).max())
        most = config.batch_size or _default_batch(device)
        self.batch = config.batch_size or fitting_batch(tokens, backbone.dim, device, most)
        self.per_item = len(self.plan.views) // len(self.plan.items)
        draft.deterministic = device.type == "cpu"
        if draft.is_done(_DROPPING):
            draft.clear()  # a call was killed while it rewrote the arrays
        self._lay_out()

    def _lay_out(self) -> None:
        probe = self._probe()
        grid_arrays = {
            name: self._channels(name, value) for name, value in probe.items() if name in GRID_DTYPES
        }
        sizes = [(self.grids, shape, GRID_DTYPES[name]) for name, shape in grid_arrays.items()]
        self.needed = sum(bytes_needed(*size) for size in sizes)
        packed = sum(array_bytes(*size) for size in sizes) if self.config.store == "hdf5" else 0
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
        self.blocks = range(0, len(self.plan.items), self.items_per_block)

    def write(self) -> None:
        """Make the blocks of this shard that are not finished yet."""
        index, shards = self.shard
        own = list(enumerate(self.blocks))[index - 1 :: shards]
        todo = [(i, start) for i, start in own if not self.draft.is_done(_part(i))]
        if len(todo) < len(own):
            self.context.reporter.info(f"going on after {len(own) - len(todo)} finished blocks")
        for (block, _), (arrays, failed) in zip(todo, self._embed_blocks(own, todo), strict=True):
            for name, writer in self.writers.items():
                writer.write(block, arrays[name])
            for name in self.vectors:
                np.save(self.draft.folder / f".{name}-{block:06d}.npy", np.stack(arrays[name]))
            self.draft.finish(_part(block), failed)

    def missing(self) -> int:
        """Return how many blocks, of all shards, are not finished."""
        return sum(not self.draft.is_done(_part(block)) for block in range(len(self.blocks)))

    def _probe(self) -> dict[str, Tensor]:
        patch = self.backbone.patch_size
        return self.embed(np.zeros((1, 2 * patch, 2 * patch, 3), np.uint8))

    @staticmethod
    def _channels(name: str, value: Tensor) -> tuple[int, ...]:
        return (value.shape[1],) if name == "attention" else (value.shape[-1],)

    def _embed_blocks(
        self, own: Sequence[tuple[int, int]], todo: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[dict[str, list[NDArray[Any]]], dict[str, str]]]:
        """Yield the arrays of each block, in order; the loader reads ahead over block borders."""
        indices = [item for _, start in todo for item in self._items(start)]
        loaded = load_views(
            self.plan.items,
            self.geometry,
            self.backbone.patch_size,
            workers=resolve_workers(self.config.workers),
            indices=indices,
        )
        total = sum(len(self._items(start)) for _, start in own)
        first = total - len(indices)
        tracked = iter(self.context.reporter.track(loaded, "extract", total=total, done=first))
        for _, start in todo:
            images: list[NDArray[np.uint8]] = []
            failed: dict[str, str] = {}
            for item in self._items(start):
                result = next(tracked)
                if isinstance(result, Failed):
                    _skip(failed, self.plan.items[item], result.message, self.config.strict)
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
        return range(start, min(start + self.items_per_block, len(self.plan.items)))

    def _view_size(self, item: int, crop: int) -> tuple[int, int]:
        view = self.plan.views[item * self.per_item + crop][1]
        return view.height, view.width

    def _embed_images(self, images: list[NDArray[np.uint8]]) -> dict[str, list[NDArray[Any]]]:
        """Embed images batch by batch, images of one size together, and return rows in the given order."""
        rows: dict[str, list[Any]] = {name: [None] * len(images) for name in self.keep}
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            sizes.setdefault(image.shape, []).append(index)
        for members in sizes.values():

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
        """Join the blocks and return the summary."""
        folder, blocks = self.draft.folder, range(len(self.blocks))
        for writer in self.writers.values():
            writer.close()
        for name in self.vectors:
            parts = [np.load(folder / f".{name}-{block:06d}.npy", allow_pickle=False) for block in blocks]
            write_array(folder / name, np.concatenate(parts))
        failed: dict[str, str] = {}
        for block in blocks:
            failed.update(self.draft.note(_part(block)))
        views = [(item, view) for item, view in self.plan.views if self.plan.items[item].key not in failed]
        if not views:
            raise UnsupsegError(f"No image is readable; the first reason: {next(iter(failed.values()))}")
        if failed:
            self._drop_failed(failed)
        _write_views(folder, self.plan.items, views)
        skipped = {**self.plan.skipped, **failed}
        if skipped:
            some = ", ".join(list(skipped)[:5])
            self.draft.warnings.append(
                f"{len(skipped)} unreadable images were skipped ({some}{', ...' if len(skipped) > 5 else ''}); "
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
        good = [i for i, (item, _) in enumerate(self.plan.views) if self.plan.items[item].key not in failed]
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


def _write_views(folder: Path, items: Sequence[Item], views: Sequence[tuple[int, View]]) -> None:
    """Write the table of views: one row per row of the arrays."""
    columns = {
        "key": [items[item].key for item, _ in views],
        "crop": [view.crop for _, view in views],
        "box": [list(map(float, view.box)) for _, view in views],
        "height": [view.height for _, view in views],
        "width": [view.width for _, view in views],
        "flip": [view.flip for _, view in views],
    }
    pq.write_table(pa.table(columns), folder / VIEWS)
