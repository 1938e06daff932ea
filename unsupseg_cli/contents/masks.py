"""Writing and reading the content of a `pseudolabels` artifact: label maps, soft masks, the table of masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from unsupseg_cli.artifacts.arrays import RaggedWriter, RowReader, write_array
from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.grids import GridReader, GridWriter, array_bytes, views_per_block
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.views import ViewImages
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.crf.trust import trusted
from unsupseg_cli.methods.interface import Masks, MaskSet
from unsupseg_cli.report.overlay import blend
from unsupseg_cli.report.palette import class_colors
from unsupseg_cli.report.sheet import grid

MASKS, STATE, LABELS, SOFT = "masks.parquet", "state.safetensors", "labels", "soft"


class MaskWriter:
    """Writes label maps, soft masks and the table of masks, block by block; finished blocks survive a kill.

    Args:
        draft: of the artifact.
        features: whose views are labelled.
        sizes: rows and columns of each view's label map, (N, 2).
        soft: also write the soft masks.
    """

    def __init__(self, draft: Draft, features: FeatureSet, sizes: NDArray[np.int64], soft: bool) -> None:
        self._draft, self._features = draft, features
        self._sizes = sizes
        self._size = views_per_block(sizes, (), np.int16)
        self._labels = GridWriter(draft.folder, LABELS, sizes, (), np.int16, self._size)
        self._soft = RaggedWriter(draft.folder / SOFT) if soft else None

    def todo(self, context: Context, description: str = "pseudolabel") -> Iterator[tuple[int, list[int]]]:
        """Yield the number and the views of each block that is not finished yet."""
        count = len(self._features)
        blocks = [range(start, min(start + self._size, count)) for start in range(0, count, self._size)]
        todo = [(i, list(views)) for i, views in enumerate(blocks) if not self._draft.is_done(self._part(i))]
        done = len(blocks) - len(todo)
        yield from context.reporter.track(todo, description, total=len(blocks), done=done)

    def write(
        self, block: int, views: Sequence[int], masks: Sequence[Masks], figures: dict[str, Any]
    ) -> None:
        """Write the masks of a block of views; ``figures`` are added up over the blocks.

        Raises:
            UnsupsegError: the masks do not fit their view or each other; the message says which and how.
            UsageError: soft masks are asked for, and the method makes none.
        """
        if len(masks) != len(views):
            raise UnsupsegError(f"The labeller gave masks of {len(masks)} views, expected {len(views)}.")
        for view, mask in zip(views, masks, strict=True):
            if problem := _mismatch(mask, tuple(self._sizes[view].tolist())):
                key = self._features.views["key"][view]
                raise UnsupsegError(f"The labeller gave masks of '{key}' that do not fit: {problem}.")
        self._labels.write(block, [mask.labels for mask in masks])
        channels = []
        if self._soft is not None:
            if any(mask.soft is None for mask in masks):
                raise UsageError("This method makes no soft masks; leave --keep soft out.")
            log_probs = [mask.soft for mask in masks if mask.soft is not None]
            self._soft.write(block, np.concatenate([scores.ravel() for scores in log_probs]))
            channels = [len(scores) for scores in log_probs]
        note = {"channels": channels, "figures": figures, "masks": [_mask_rows(mask) for mask in masks]}
        self._draft.finish(self._part(block), note)

    def close(self) -> dict[str, Any]:
        """Finish the files and return the summary."""
        notes = [self._draft.note(self._part(i)) for i in range(-(-len(self._features) // self._size))]
        self._labels.close()
        if self._soft is not None:
            self._soft.close()
            channels = np.array([count for note in notes for count in note["channels"]], np.int64)
            write_array(self._draft.folder / f"{SOFT}_channels", channels)
        rows = [view_rows for note in notes for view_rows in note["masks"]]
        table = [[view, *row] for view, view_rows in enumerate(rows) for row in view_rows]
        columns = list(zip(*table, strict=True)) or [()] * len(_COLUMNS)
        pq.write_table(
            pa.table(dict(zip(_COLUMNS.names, columns, strict=True)), _COLUMNS), self._draft.folder / MASKS
        )
        empty = [self._features.views["key"][view] for view, view_rows in enumerate(rows) if not view_rows]
        if empty:
            self._draft.warnings.append(f"no mask was found in {len(empty)} views ({', '.join(empty[:5])})")
        per_view = len(table) / len(rows)
        if len(rows) > 1 and per_view < _FEW_MASKS:
            self._draft.warnings.append(
                f"nearly every view is a single mask ({per_view:.2f} per view): look at sheet.png; masks that "
                "separate nothing teach nothing"
            )
        figures: Counter[str] = Counter()
        for note in notes:
            figures.update(note["figures"])
        return {
            **figures,
            "views": len(rows),
            "masks": len(table),
            "masks_per_view": per_view,
            "empty": empty,
        }

    @staticmethod
    def _part(block: int) -> str:
        return f"block-{block:06d}"


def _mismatch(masks: Masks, size: tuple[int, ...]) -> str:
    """Say what is wrong with the masks of a view of a size, if anything."""
    count = len(masks.area)
    if masks.labels.shape != size:
        return f"a label map of {masks.labels.shape}, expected {size}"
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


def draw_masks(folder: Path, features: FeatureSet, count: int, context: Context) -> None:
    """Write ``sheet.png``: some views, evenly chosen, each with its masks (or its classes, where there are any)."""
    try:
        images = ViewImages(features, context) if count else None
    except UnsupsegError as error:
        context.reporter.info(f"no picture sheet: {error}")
        return
    if images is None:
        return
    views = np.linspace(0, len(features) - 1, min(count, len(features))).round().astype(int).tolist()
    maps, table = GridReader(folder, LABELS), pq.read_table(folder / MASKS)
    colors = class_colors(256)
    pictures: list[NDArray[np.uint8]] = []
    for view, image in zip(views, images(views), strict=True):
        groups = table["class"].to_numpy()[table["view"].to_numpy() == view]
        shown = np.where(groups < 0, np.arange(len(groups)), groups) % len(colors)
        labels = np.append(shown, -1)[maps[view]]
        scale = (image.shape[0] // labels.shape[0], image.shape[1] // labels.shape[1])
        pictures += [image, blend(image, np.kron(labels, np.ones(scale, labels.dtype)), colors)]
    rows = [pictures[start : start + _SHEET_COLUMNS] for start in range(0, len(pictures), _SHEET_COLUMNS)]
    grid(rows, ["image", "masks"] * (len(rows[0]) // 2), cell=240).save(folder / "sheet.png")


_FEW_MASKS = 1.5  # per view
_SHEET_COLUMNS = 6  # pictures in a row: three views


class LabelMaps(Sequence[Any]):
    """Label maps by view, read when they are asked for."""

    def __init__(self, artifact: Artifact) -> None:
        self._reader = GridReader(artifact.path, LABELS)

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, view: Any) -> Any:
        return self._reader[view]


class SoftMasks(Sequence[Any]):
    """Soft masks (M + 1, h, w) by view: log-probabilities of no mask and of each mask, on the token grid."""

    def __init__(self, artifact: Artifact, grids: NDArray[np.int64]) -> None:
        self._rows = RowReader(artifact.path / SOFT)
        channels = RowReader(artifact.path / f"{SOFT}_channels")
        self._shapes = np.concatenate([channels.rows(0, len(channels))[:, None], grids], axis=1)
        self._offset = np.concatenate([[0], np.cumsum(self._shapes.prod(1))])

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, view: Any) -> Any:
        values = self._rows.rows(int(self._offset[view]), int(self._offset[view + 1]))
        return values.reshape(self._shapes[view])


def mask_counts(artifact: Artifact, views: int) -> NDArray[np.int64]:
    """Return how many masks each view has, (views,)."""
    table = pq.read_table(artifact.path / MASKS)
    return np.bincount(table["view"].to_numpy(), minlength=views)


def read_masks(artifact: Artifact) -> MaskSet:
    """Open a `pseudolabels` artifact as methods read it."""
    labels = LabelMaps(artifact)
    table = pq.read_table(artifact.path / MASKS)
    first = np.searchsorted(table["view"].to_numpy(), np.arange(1, len(labels)))
    groups = np.split(table["class"].to_numpy().astype(np.int64), first)
    return MaskSet(labels, groups, load_file(artifact.path / STATE))


def write_state(folder: Path, state: dict[str, Tensor]) -> None:
    """Write the tensors that training may start from."""
    save_file(state, folder / STATE)


def label_bytes(sizes: NDArray[np.int64]) -> int:
    """Return the bytes of the label maps of views of these sizes, (N, 2)."""
    return array_bytes(sizes, (), np.int16)


class MaskScores:
    """The masks of some pseudo-labels by view, soft or trusted so far."""

    def __init__(self, labels: Artifact, features: FeatureSet, confidence: float | None) -> None:
        table = pq.read_table(labels.path / MASKS)
        first = np.searchsorted(table["view"].to_numpy(), np.arange(len(features) + 1))
        self._rows = [slice(start, stop) for start, stop in pairwise(first.tolist())]
        self._score, self._group = table["score"].to_numpy(), table["class"].to_numpy()
        self._confidence = confidence
        if confidence is None:
            self._soft = SoftMasks(labels, features.grids)
        else:
            self._labels = LabelMaps(labels)

    def log_probs(self, view: int) -> Tensor:
        """Return log-probabilities (M + 1, h, w): of no mask, and of each mask."""
        if self._confidence is None:
            return torch.from_numpy(self._soft[view])
        count = self._rows[view].stop - self._rows[view].start
        return trusted(self._labels[view].astype(np.int64) + 1, count + 1, self._confidence)

    def remaining(self, view: int, labels: NDArray[np.int16]) -> Masks:
        """Return the masks that have pixels left in a new label map (H, W), numbered anew."""
        rows = self._rows[view]
        score, group = self._score[rows], self._group[rows]
        area = np.bincount(labels[labels >= 0], minlength=len(score)).astype(np.int64)
        remaining = np.flatnonzero(area)
        number = np.full(len(score) + 1, -1, np.int16)  # the last entry is that of label -1
        number[remaining] = np.arange(len(remaining))
        return Masks(
            number[labels],
            area[remaining],
            score[remaining].astype(np.float32),
            group[remaining].astype(np.int64),
        )
