"""Writing the content of `pseudolabels` and of `masks`, block by block, and a sheet of pictures of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.grids import views_per_block
from unsupseg_cli.artifacts.packed import PackedWriter
from unsupseg_cli.contents.masks import LABELS, MASKS, SOFT, STATE, MaskTable
from unsupseg_cli.contents.view_arrays import ViewArraysWriter
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.shards import WHOLE, Shard
from unsupseg_cli.core.words import counted
from unsupseg_cli.methods.interface import Masks
from unsupseg_cli.report.overlay import blend
from unsupseg_cli.report.palette import class_colors
from unsupseg_cli.report.sheet import grid
from unsupseg_cli.training.live import Images

_AT_ONCE = 16  # views whose masks are made at a time: what progress counts in


class MaskWriter:
    """Writes masks, their arrays and the table of masks, block by block; finished blocks survive a kill.

    Args:
        draft: of the artifact.
        keys: the image that each view shows a part of.
        sizes: rows and columns of each view's masks, (N, 2).
        soft: also write the soft masks.
        shard: the blocks that are made here.
    """

    def __init__(
        self,
        draft: Draft,
        keys: Sequence[str],
        sizes: NDArray[np.int64],
        soft: bool,
        shard: Shard = WHOLE,
    ) -> None:
        self._draft, self._keys, self._sizes, self._shard = draft, keys, sizes, shard
        self._size = views_per_block(sizes, (), np.int16)
        self._labels = PackedWriter(draft.folder, LABELS, np.int16)
        self._soft = PackedWriter(draft.folder, SOFT, np.float16) if soft else None
        self._arrays = ViewArraysWriter(draft.folder)

    def fill(
        self,
        make: Callable[[list[int]], list[Masks]],
        context: Context,
        description: str = "pseudolabel",
        *,
        figures: Callable[[], Mapping[str, Any]] = dict,
        sources: Callable[[int], Sequence[str]] | None = None,
    ) -> None:
        """Make and write the masks of all views of the shard whose block is not finished yet.

        Args:
            make: gives the masks of some views, of one block.
            context: is told the progress, in views.
            description: of the work.
            figures: what was counted since the last call.
            sources: what the masks of a view that was made are called where they came from.

        Raises:
            UnsupsegError, UsageError: as `write` does.
        """
        blocks = self._shard.take(enumerate(self._blocks()))
        count = sum(len(views) for _, views in blocks)
        todo = [(i, list(views)) for i, views in blocks if not self._draft.is_done(self._part(i))]

        def made() -> Iterator[int]:
            for block, views in todo:
                masks: list[Masks] = []
                for start in range(0, len(views), _AT_ONCE):
                    part = views[start : start + _AT_ONCE]
                    masks += make(part)
                    yield from part
                names = None if sources is None else [sources(view) for view in views]
                self.write(block, views, masks, figures(), names)

        left = sum(len(views) for _, views in todo)
        for _ in context.reporter.track(made(), description, total=count, done=count - left):
            pass

    def write(
        self,
        block: int,
        views: Sequence[int],
        masks: Sequence[Masks],
        figures: Mapping[str, Any],
        sources: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Write the masks of a block of views.

        Args:
            block: its number.
            views: their numbers.
            masks: of each view.
            figures: added up over the blocks.
            sources: what each mask is called where it came from; in all blocks or in none.

        Raises:
            UnsupsegError: the masks do not fit their view or each other; the message says which and how.
            UsageError: soft masks are asked for, and the method makes none.
        """
        if len(masks) != len(views):
            raise UnsupsegError(f"The labeller gave masks of {len(masks)} views, expected {len(views)}.")
        for view, mask in zip(views, masks, strict=True):
            if problem := _mismatch(mask, tuple(self._sizes[view].tolist())):
                raise UnsupsegError(
                    f"The labeller gave masks of '{self._keys[view]}' that do not fit: {problem}."
                )
        layers = [mask.labels if mask.labels.ndim == 3 else mask.labels[None] for mask in masks]
        note: dict[str, Any] = {"labels": self._labels.write(block, layers), "figures": dict(figures)}
        if self._soft is not None:
            if any(mask.soft is None for mask in masks):
                raise UsageError("This method makes no soft masks; leave --keep scores out.")
            note["soft"] = self._soft.write(block, [mask.soft for mask in masks if mask.soft is not None])
        note["arrays"] = self._arrays.write(block, [mask.arrays for mask in masks])
        note["masks"] = [_mask_rows(mask) for mask in masks]
        note["sources"] = None if sources is None else [list(names) for names in sources]
        packed = [self._labels, *([self._soft] if self._soft is not None else [])]
        files = [writer.file(block) for writer in packed] + self._arrays.files(block, note["arrays"])
        self._draft.finish(self._part(block), note, files)

    def _blocks(self) -> list[range]:
        """Return the views of each block."""
        count = len(self._keys)
        return [range(start, min(start + self._size, count)) for start in range(0, count, self._size)]

    def missing(self) -> int:
        """Return how many blocks, of all shards, are not finished."""
        return sum(not self._draft.is_noted(self._part(block)) for block in range(len(self._blocks())))

    def close(self) -> dict[str, Any]:
        """Finish the files and return the summary."""
        tally = _Tally()
        for block in range(len(self._blocks())):
            self._draft.bring(self._draft.files(self._part(block)))
        path, schema = self._draft.folder / MASKS, _COLUMNS
        if self._note(0)["sources"] is not None:
            schema = schema.append(pa.field("source", pa.string()))
        _write_table(path, schema, (tally.add(note, schema) for note in self._notes()))
        self._labels.close(cast("Sequence[Sequence[int]]", tally.labels))
        if self._soft is not None:
            self._soft.close([piece for note in self._notes() for piece in note["soft"]])
        self._arrays.close([note["arrays"] for note in self._notes()])
        empty = [self._keys[view] for view in tally.empty]
        if empty:
            self._draft.warnings.append(
                f"no mask was found in {counted(len(empty), 'view')} ({', '.join(empty[:5])})"
            )
        return {
            **tally.figures,
            "views": tally.views,
            "masks": tally.masks,
            "masks_per_view": tally.masks / tally.views,
            "covered": tally.area / int(self._sizes.prod(1).sum()),
            "overlapping": int((tally.labels[:, 1] > 1).sum()),
            "classes_used": len(tally.classes - {VOID}),
            "empty": empty,
        }

    def _notes(self) -> Iterator[dict[str, Any]]:
        """Yield what was noted of each block; all at once would take many times the room of the masks."""
        return (self._note(block) for block in range(len(self._blocks())))

    def _note(self, block: int) -> dict[str, Any]:
        note: dict[str, Any] | None = self._draft.note(self._part(block))
        if note is None:
            raise UnsupsegError(
                f"What was noted of a part of '{self._draft.folder}' is gone; the same call makes it again."
            )
        return note

    @staticmethod
    def _part(block: int) -> str:
        return f"block-{block:06d}"


class _Tally:
    """What is counted over the blocks of views, one after the other."""

    def __init__(self) -> None:
        self.views = self.masks = self.area = 0
        self.classes: set[int] = set()
        self.empty: list[int] = []
        self.figures: Counter[str] = Counter()
        self._labels: list[NDArray[np.int64]] = []

    def add(self, note: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
        """Count a block, and return its rows of the table of masks."""
        first, rows = self.views, note["masks"]
        table = [[first + view, *row] for view, of_view in enumerate(rows) for row in of_view]
        columns = [*zip(*table, strict=True)] or [()] * len(_COLUMNS)
        if note["sources"] is not None:
            columns.append(tuple(name for names in note["sources"] for name in names))
        self.views, self.masks = self.views + len(rows), self.masks + len(table)
        self.area += sum(columns[_COLUMNS.names.index("area")])
        self.classes |= {*columns[_COLUMNS.names.index("class")]}
        self.empty += [first + view for view, of_view in enumerate(rows) if not of_view]
        self.figures.update(note["figures"])
        self._labels.append(np.array(note["labels"], np.int64))
        return pa.table(dict(zip(schema.names, columns, strict=True)), schema)

    @property
    def labels(self) -> NDArray[np.int64]:
        """What the writer of label maps told of each view."""
        return np.concatenate(self._labels)


_GROUP = 1 << 20  # rows, as `pq.write_table` groups them


def _write_table(path: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
    """Write a table part by part, in the bytes of `pq.write_table`; memory holds a group of rows."""
    with pq.ParquetWriter(path, schema) as writer:
        waiting, rows, written = [schema.empty_table()], 0, False
        for part in parts:
            waiting, rows = [*waiting, part], rows + len(part)
            while rows > _GROUP:
                whole = pa.concat_tables(waiting)
                writer.write_table(whole.slice(0, _GROUP).combine_chunks(), _GROUP)
                waiting, rows, written = [whole.slice(_GROUP)], rows - _GROUP, True
        if rows or not written:
            writer.write_table(pa.concat_tables(waiting).combine_chunks(), _GROUP)


def warn_of_single_masks(draft: Draft, summary: Mapping[str, Any]) -> None:
    """Warn of pseudo-labels that take nearly every view, and all of it, as one mask."""
    per_view = summary["masks_per_view"]
    if summary["views"] > 1 and per_view < _FEW_MASKS and summary["covered"] > _WHOLE:
        draft.warnings.append(
            f"nearly every view is a single mask ({per_view:.2f} per view): look at sheet.png; masks that "
            "separate nothing teach nothing"
        )


def warn_of_unused_classes(draft: Draft, summary: Mapping[str, Any], classes: int) -> None:
    """Warn of classes that no mask has, where masks have classes."""
    used = summary["classes_used"]
    if 0 < used < classes:
        draft.warnings.append(f"without a mask: {classes - used} of {classes} classes; try fewer --classes")


def _mismatch(masks: Masks, size: tuple[int, ...]) -> str:
    """Say what is wrong with the masks of a view of a size, if anything."""
    count = len(masks.area)
    if masks.labels.shape[-2:] != size or masks.labels.ndim not in (2, 3) or not len(masks.labels):
        return f"a label map of {masks.labels.shape}, expected {size}, or layers of that size"
    if not np.issubdtype(masks.labels.dtype, np.integer):
        return f"a label map of type {masks.labels.dtype}, expected integers"
    if not len(masks.score) == len(masks.group) == count:
        return f"{count} areas, {len(masks.score)} scores and {len(masks.group)} classes, expected as many of each"
    columns = {"areas": masks.area, "classes": masks.group}
    for name, column in columns.items():
        if not np.issubdtype(np.asarray(column).dtype, np.integer):
            return f"{name} of type {np.asarray(column).dtype}, expected integers"
    if count and int(np.min(masks.group)) < -1:
        return f"the class {int(np.min(masks.group))}, expected numbers from 0, or -1 for none"
    low, high = int(masks.labels.min(initial=-1)), int(masks.labels.max(initial=-1))
    if low < -1 or high >= count:
        return f"mask ids from {low} to {high}, expected -1 to {count - 1}"
    if not np.isfinite(masks.score).all():
        return "scores that are NaN or infinite"
    if masks.soft is not None and (masks.soft.ndim != 3 or len(masks.soft) != count + 1):
        return f"soft masks of {masks.soft.shape}, expected {count + 1} channels"
    return ""


_COLUMNS = pa.schema(
    [
        ("view", pa.int64()),
        ("id", pa.int64()),
        ("area", pa.int64()),
        ("score", pa.float64()),
        ("class", pa.int64()),
    ]
)


def _mask_rows(masks: Masks) -> list[tuple[int, int, float, int]]:
    """Return a row of the table for each mask of a view, without the view."""
    columns = (masks.area.tolist(), masks.score.tolist(), masks.group.tolist())
    return [(index, *row) for index, row in enumerate(zip(*columns, strict=True))]


def draw_masks(folder: Path, open_images: Callable[[], Images], count: int, context: Context) -> None:
    """Write ``sheet.png``: some views, evenly chosen, each with its masks (or its classes, where there are any)."""
    try:
        images = open_images() if count else None
    except UnsupsegError as error:
        context.reporter.info(f"no picture sheet: {error}")
        return
    if images is None:
        return
    masks = MaskTable(folder)
    views = np.linspace(0, len(masks) - 1, min(count, len(masks))).round().astype(int).tolist()
    colors = class_colors(256)
    pictures: list[NDArray[np.uint8]] = []
    for view, image in zip(views, images(views), strict=True):
        groups = masks.rows(view).group
        shown = np.where(groups < 0, np.arange(len(groups)), groups) % len(colors)
        labels = np.append(shown, -1)[masks.label_map(view)]
        scale = (image.shape[0] // labels.shape[0], image.shape[1] // labels.shape[1])
        pictures += [image, blend(image, np.kron(labels, np.ones(scale, labels.dtype)), colors)]
    rows = [pictures[start : start + _SHEET_COLUMNS] for start in range(0, len(pictures), _SHEET_COLUMNS)]
    grid(rows, ["image", "masks"] * (len(rows[0]) // 2), cell=240).save(folder / "sheet.png")


_FEW_MASKS, _WHOLE = 1.5, 0.8  # per view; share of all cells
_SHEET_COLUMNS = 6  # pictures in a row: three views


def write_state(folder: Path, state: dict[str, Tensor]) -> None:
    """Write the tensors that training may start from."""
    save_file(state, folder / STATE)


def label_bytes(sizes: NDArray[np.int64]) -> int:
    """Return about how many bytes the label maps of views of these sizes, (N, 2), take on disk."""
    cells = sizes.prod(1)
    return int(np.minimum(_BORDER * np.sqrt(cells), 2 * cells + _PIECE).sum())


_BORDER = (
    15  # bytes for each cell of a map's side, since borders are what takes room: of PriMaPs' masks on CamVid
)
_PIECE = 16  # bytes that a piece takes at least
