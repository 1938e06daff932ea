"""Reading the content of `pseudolabels` and of `masks`: layers of masks, soft masks, the table of masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from unsupseg_cli.artifacts.arrays import RowReader
from unsupseg_cli.artifacts.columns import Columns
from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.damage import reading
from unsupseg_cli.artifacts.grids import GridReader
from unsupseg_cli.artifacts.packed import PackedReader, is_packed
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.features import VIEWS, FeatureSet, features_behind, view_of
from unsupseg_cli.contents.view_arrays import ViewArrays
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.words import counted
from unsupseg_cli.crf.trust import trusted
from unsupseg_cli.data.geometry import sample_nearest
from unsupseg_cli.data.masks import cell_boxes, to_label_map, to_masks
from unsupseg_cli.methods.interface import Masks, MaskSet

MASKS, STATE, LABELS, SOFT = "masks.parquet", "state.safetensors", "labels", "soft"


class Layers(Sequence[Any]):
    """The masks of each view in layers (L, h, w) int16, see `data.masks`; read when they are asked for.

    Label maps that were written before masks could overlap are read as one layer.
    """

    def __init__(self, folder: Path) -> None:
        self._packed = PackedReader(folder, LABELS, np.int16) if is_packed(folder, LABELS) else None
        self._grids = GridReader(folder, LABELS) if self._packed is None else None

    def __len__(self) -> int:
        return len(self._packed or self._grids or ())

    def __getitem__(self, view: Any) -> Any:
        if self._packed is not None:
            return self._packed[view]
        assert self._grids is not None
        return self._grids[view][None]


@dataclass(frozen=True)
class MaskRows:
    """The table of the masks of one view: a row each. ``group`` is the class, -1 without one."""

    id: NDArray[np.int64]
    area: NDArray[np.int64]
    score: NDArray[np.float64]
    group: NDArray[np.int64]


class MaskTable:
    """The masks in the folder of an artifact, of kind `masks` or `pseudolabels`, by view."""

    def __init__(self, folder: Path) -> None:
        self.layers = Layers(folder)
        with reading(folder / MASKS):  # column by column: of millions of masks they are large
            self._columns = {name: _column(folder / MASKS, name) for name in ("area", "score", "class")}
            self._first = np.searchsorted(_column(folder / MASKS, "view"), np.arange(len(self.layers) + 1))

    def __len__(self) -> int:
        return len(self.layers)

    def rows(self, view: int) -> MaskRows:
        """Return the rows of the masks of a view, in the order of their ids."""
        rows = slice(self._first[view], self._first[view + 1])
        area, score, group = (self._columns[name][rows] for name in ("area", "score", "class"))
        return MaskRows(np.arange(len(area)), area, score, group)

    def count(self, view: int) -> int:
        """Return the number of masks M of a view."""
        return int(self._first[view + 1] - self._first[view])

    def masks(self, view: int) -> NDArray[np.bool_]:
        """Return every mask of a view whole, (M, h, w)."""
        return to_masks(self.layers[view], self.count(view))

    def label_map(self, view: int) -> NDArray[np.int16]:
        """Return the mask id of each cell, (h, w), -1 without one; of masks that overlap the one of higher score."""
        layers = self.layers[view]
        if len(layers) == 1:
            return np.asarray(layers[0])
        rows = self.rows(view)
        return to_label_map(layers, rows.score, rows.area)


def _column(path: Path, name: str) -> NDArray[Any]:
    values: NDArray[Any] = pq.read_table(path, columns=[name])[name].to_numpy()
    return values


class MaskReader(MaskTable):
    """The masks of an artifact of kind `masks` or `pseudolabels`, and where they lie in the images.

    Raises:
        UsageError: the features that pseudo-labels were made from are gone.
    """

    def __init__(self, artifact: Artifact, context: Context) -> None:
        super().__init__(artifact.path)
        if artifact.manifest.kind == "masks":
            self.views = Columns(artifact.path / VIEWS)
        else:
            self.views = FeatureSet(features_behind(artifact, context)).views

    def boxes(self, view: int) -> NDArray[np.float64]:
        """Return left, top, right and bottom of each mask in pixels of the original image, (M, 4); zeros if empty."""
        layers, shown = self.layers[view], view_of(self.views, view)
        cells = cell_boxes(layers, self.count(view))
        boxes = shown.boxes_to_original(
            cells * np.tile([shown.width / layers.shape[2], shown.height / layers.shape[1]], 2)
        )
        boxes[cells[:, 2] == 0] = 0
        return boxes


class LabelMaps(Sequence[Any]):
    """Label maps (h, w) by view, read when they are asked for; of masks that overlap that of the higher score."""

    def __init__(self, artifact: Artifact) -> None:
        self._table = MaskTable(artifact.path)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, view: Any) -> Any:
        return self._table.label_map(view)


class ByView(Sequence[Any]):
    """What a function tells of each view, when it is asked for: a list of arrays would take many times their room."""

    def __init__(self, views: int, of_view: Callable[[int], Any]) -> None:
        self._views, self._of_view = views, of_view

    def __len__(self) -> int:
        return self._views

    def __getitem__(self, view: Any) -> Any:
        if not 0 <= view < self._views:
            raise IndexError(view)
        return self._of_view(view)


class SoftMasks(Sequence[Any]):
    """Soft masks (M + 1, h, w) by view: log-probabilities of no mask and of each mask, on the token grid."""

    def __init__(self, artifact: Artifact, grids: NDArray[np.int64]) -> None:
        self._packed = (
            PackedReader(artifact.path, SOFT, np.float16) if is_packed(artifact.path, SOFT) else None
        )
        if self._packed is not None:
            return
        self._rows = RowReader(
            artifact.path / SOFT
        )  # of an earlier version: the values of all views in one row
        channels = RowReader(artifact.path / f"{SOFT}_channels")
        self._shapes = np.concatenate([channels.rows(0, len(channels))[:, None], grids], axis=1)
        self._offset = np.concatenate([[0], np.cumsum(self._shapes.prod(1))])

    def __len__(self) -> int:
        return len(self._shapes if self._packed is None else self._packed)

    def __getitem__(self, view: Any) -> Any:
        if self._packed is not None:
            return self._packed[view]
        values = self._rows.rows(int(self._offset[view]), int(self._offset[view + 1]))
        return values.reshape(self._shapes[view])


def read_masks(artifact: Artifact, context: Context) -> MaskSet:
    """Open a `pseudolabels` artifact as methods read it."""
    table = MaskReader(artifact, context)
    groups = ByView(len(table), lambda view: table.rows(view).group)
    scores = ByView(len(table), lambda view: table.rows(view).score.astype(np.float32))
    state, arrays = load_file(artifact.path / STATE), ViewArrays(artifact.path)
    return MaskSet(LabelMaps(artifact), groups, state, table.masks, arrays, scores, table.boxes)


def read_imported(artifact: Artifact, features: FeatureSet, context: Context) -> MaskSet:
    """Open a `masks` artifact as methods read it: each view of some features with the masks of its image.

    Raises:
        UnsupsegError: the masks have no view of an image of the features.
    """
    overlapping = artifact.manifest.summary["overlapping"]
    if overlapping:
        context.reporter.info(
            f"masks of '{artifact.id}' overlap in {counted(overlapping, 'image')}: in label maps the one of higher "
            "score counts, of equal scores the smaller"
        )
    masks = _MasksOfViews(MaskReader(artifact, context), features)
    groups, scores = ByView(len(masks), masks.group), ByView(len(masks), masks.score)
    return MaskSet(masks, groups, {}, masks.masks, scores=scores, boxes=masks.boxes)


class _MasksOfViews(Sequence[Any]):
    """The masks of whole images as the views of some features show them, at the size of the view in pixels."""

    def __init__(self, masks: MaskReader, features: FeatureSet) -> None:
        rows = {key: row for row, key in enumerate(masks.views["key"])}
        for key in features.views["key"]:
            if key not in rows:
                raise UnsupsegError(f"The masks know no image '{key}' of the features; import them again.")
        self._masks, self._features = masks, features
        self._rows = [rows[key] for key in features.views["key"]]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, view: Any) -> Any:
        return self._shown(self._masks.label_map(self._rows[view]), view)

    def group(self, view: int) -> NDArray[np.int64]:
        return self._masks.rows(self._rows[view]).group

    def score(self, view: int) -> NDArray[np.float32]:
        return self._masks.rows(self._rows[view]).score.astype(np.float32)

    def boxes(self, view: int) -> NDArray[np.float64]:
        return self._masks.boxes(self._rows[view])

    def masks(self, view: int) -> NDArray[np.bool_]:
        row = self._rows[view]
        layers = np.stack([self._shown(layer, view) for layer in self._masks.layers[row]])
        return to_masks(layers, self._masks.count(row))

    def _shown(self, labels: NDArray[np.int16], view: int) -> NDArray[np.int16]:
        return sample_nearest(labels, self._features.view(view))


class MaskScores:
    """The masks of some pseudo-labels by view, soft or trusted so far."""

    def __init__(self, labels: Artifact, features: FeatureSet, confidence: float | None) -> None:
        self._masks, self._confidence = MaskTable(labels.path), confidence
        if confidence is None:
            self._soft = SoftMasks(labels, features.grids)

    def log_probs(self, view: int) -> Tensor:
        """Return log-probabilities (M + 1, h, w): of no mask, and of each mask."""
        if self._confidence is None:
            return torch.from_numpy(self._soft[view])
        labels = self._masks.label_map(view).astype(np.int64)
        return trusted(labels + 1, self._masks.count(view) + 1, self._confidence)

    def remaining(self, view: int, labels: NDArray[np.int16]) -> Masks:
        """Return the masks that have pixels left in a new label map (H, W), numbered anew."""
        rows = self._masks.rows(view)
        score, group = rows.score, rows.group
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
