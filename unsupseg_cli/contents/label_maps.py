"""The label maps of predictions: files of class ids, and beside them ``classes.json``, which says what these are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.artifacts.damage import read_json, reading
from unsupseg_cli.contents.model import ClassEntry
from unsupseg_cli.core.bounds import LARGEST_CLASS
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.labels import VOID, as_ranges
from unsupseg_cli.core.names import file_path
from unsupseg_cli.report.palette import PALETTE_VOID, WIDE_VOID

CLASSES = "classes.json"
_NO_CLASS = VOID - 1


class LabelMaps:
    """The label maps in a folder, by the image's key: ids of classes in the files, indices of ``classes`` outside.

    Args:
        folder: of predictions.
        classes: by ascending id; default: those that ``classes.json`` tells.
    """

    def __init__(self, folder: Path, classes: Sequence[ClassEntry] | None = None) -> None:
        self._folder = folder
        self.classes = read_entries(folder) if classes is None else classes
        ids = [entry.id for entry in self.classes]
        self._index_of = np.full(LARGEST_CLASS + 2, _NO_CLASS, np.int16)
        self._index_of[ids], self._index_of[VOID] = np.arange(len(ids)), VOID  # VOID is -1, the last

    def read(self, key: str) -> NDArray[np.int16]:
        """Return the index of each pixel's class, (H, W), VOID where it has none.

        Raises:
            UnsupsegError: the file holds a value that is no class.
        """
        ids = read_ids(self._folder, key)
        labels: NDArray[np.int16] = self._index_of[ids]
        if labels.min(initial=VOID) == _NO_CLASS:
            strange = as_ranges(np.unique(ids[labels == _NO_CLASS]).tolist())
            raise UnsupsegError(
                f"The label map of '{key}' in '{self._folder}' holds {strange}, which {CLASSES} does not name; run "
                "`unsupseg verify`, and predict again."
            )
        return labels

    def write(self, key: str, labels: NDArray[np.int16]) -> Path:
        """Write the indices (H, W) of classes as a gray PNG of their ids; return its path."""
        return write_ids(self._folder, key, to_ids(labels, self.classes))


def to_ids(labels: NDArray[np.int16], classes: Sequence[ClassEntry]) -> NDArray[np.int16]:
    """Return the ids of indices of classes, VOID for VOID."""
    id_of = np.array([*(entry.id for entry in classes), VOID], np.int16)  # VOID is -1, the last
    ids: NDArray[np.int16] = id_of[labels]
    return ids


def colors_by_id(classes: Sequence[ClassEntry]) -> NDArray[np.uint8]:
    """Return the colour of each id, (largest id + 1, 3) uint8; black where there is no class of that id."""
    colors = np.zeros((classes[-1].id + 1, 3), np.uint8)
    for entry in classes:
        colors[entry.id] = entry.color
    return colors


def write_ids(folder: Path, key: str, ids: NDArray[np.int16]) -> Path:
    """Write class ids as a gray PNG: 8 bit where all are below 255 (void 255), else 16 bit (void 65535)."""
    path = folder / "ids" / f"{file_path(key)}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if ids.max(initial=0) < PALETTE_VOID:
        image = Image.fromarray(np.where(ids == VOID, PALETTE_VOID, ids).astype(np.uint8))
    else:
        image = Image.fromarray(np.where(ids == VOID, WIDE_VOID, ids).astype(np.uint16))
    image.save(path)
    return path


def read_ids(folder: Path, key: str) -> NDArray[np.int16]:
    """Read what `write_ids` wrote, (H, W) with VOID = -1."""
    path = folder / "ids" / f"{file_path(key)}.png"
    with reading(path), Image.open(path, formats=["PNG"]) as image:
        raw = np.array(image)
    void = PALETTE_VOID if raw.dtype == np.uint8 else WIDE_VOID
    return np.where(raw == void, VOID, raw.astype(np.int32)).astype(np.int16)


def read_entries(folder: Path) -> list[ClassEntry]:
    """Read the classes of label maps, by ascending id, from the file beside them."""
    with reading(folder / CLASSES):
        return [
            ClassEntry(id=record["id"], name=record["name"], color=record["color"])
            for record in _records(folder)
        ]


def read_outputs(folder: Path) -> list[list[int]]:
    """Read the outputs of the model that each class of label maps is made of, from the file beside them.

    An entry is empty where the file, of an earlier version, does not tell.
    """
    with reading(folder / CLASSES):
        return [[int(output) for output in record.get("clusters", [])] for record in _records(folder)]


def _records(folder: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = read_json(folder / CLASSES)
    if not (isinstance(records, list) and records):
        raise ValueError("expected a list of classes")
    return records
