"""What a tuning holds: a table of the candidates, a plot, and a sheet of the images as the best ones segment them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.core.names import cell
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.label_free import criterion
from unsupseg_cli.metrics.matching import match
from unsupseg_cli.report.overlay import blend
from unsupseg_cli.report.palette import class_colors
from unsupseg_cli.report.plots import candidates_figure, save
from unsupseg_cli.report.sheet import Picture, grid

TABLE, PLOT, SHEET = "candidates.csv", "candidates.png", "sheet.png"
_SHOWN_IMAGES, _SHOWN_CANDIDATES = 6, 6  # on the sheet
_CELL = 220  # pixels of a picture's side there


class Tried(NamedTuple):
    """A candidate: its name, what of that tells it apart, its model, and the figures of what it segments.

    The figures are those of `metrics.label_free`.
    """

    name: str
    label: str
    model: Artifact
    contrast: float
    agreement: float
    placed: float


def write_tuning(
    folder: Path,
    tried: Sequence[Tried],
    confirmed: NDArray[np.float64],
    maps: NDArray[np.int16],
    items: Sequence[Item],
    has_place: bool,
) -> dict[str, Any]:
    """Write table and pictures, and return the summary: the candidates in their order, and which is the best.

    Args:
        folder: of the tuning.
        tried: the candidates.
        confirmed: share of each that each other one confirms, (n, n) in [0, 1].
        maps: what they segment, (n, images, S, S).
        items: the images.
        has_place: whether place matters in the images.
    """
    figures = np.array([(one.contrast, one.agreement, one.placed) for one in tried])
    values = criterion(figures[:, 0], figures[:, 1], figures[:, 2], has_place)
    order = np.argsort(-values, kind="stable").tolist()
    rows = [
        _row(rank, number, tried[number], float(values[number]), maps[number])
        for rank, number in enumerate(order, 1)
    ]
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {name: cell(text) if isinstance(text, str) else text for name, text in row.items()}
            )
    labels = [tried[number].label for number in order]
    save(candidates_figure(labels, values[order], confirmed[np.ix_(order, order)]), folder / PLOT)
    best = [(tried[number].label, maps[number]) for number in order[:_SHOWN_CANDIDATES]]
    _sheet(best, items).save(folder / SHEET)
    return {
        "best": order[0],
        "images": len(items),
        "has_place": has_place,
        "candidates": sorted(rows, key=lambda row: row["candidate"]),
    }


def _row(rank: int, number: int, tried: Tried, value: float, maps: NDArray[np.int16]) -> dict[str, Any]:
    return {
        "candidate": number + 1,
        "rank": rank,
        "name": tried.name,
        "criterion": round(value, 6),
        "contrast": round(tried.contrast, 6),
        "agreement": round(tried.agreement, 6),
        "told_by_place": round(tried.placed, 6),
        "classes": int(tried.model.manifest.summary["classes"]),
        "classes_seen": len(np.unique(maps)),
        "model": tried.model.id,
    }


def _sheet(best: Sequence[tuple[str, NDArray[np.int16]]], items: Sequence[Item]) -> Image.Image:
    """Return some images beside the candidates' segmentations, in the colours of the best one's classes."""
    chosen = np.linspace(0, len(items) - 1, min(_SHOWN_IMAGES, len(items))).round().astype(int)
    colors, reference = class_colors(256), best[0][1]
    columns = [_named_alike(maps, reference)[chosen] for _, maps in best]
    rows: list[list[Picture]] = []
    for row, place in enumerate(chosen):
        picture = Image.fromarray(read_image(items[place].image, items[place].reading))
        picture.thumbnail((2 * _CELL, 2 * _CELL))
        image = np.asarray(picture)
        rows.append([image, *(blend(image, _enlarged(maps[row], image), colors) for maps in columns)])
    names = [
        f"{rank}. {name}".replace(" ", "\n").replace("\n", " ", 1) for rank, (name, _) in enumerate(best, 1)
    ]
    return grid(rows, headings=["image", *names], cell=_CELL)


def _named_alike(maps: NDArray[np.int16], reference: NDArray[np.int16]) -> NDArray[np.int64]:
    """Return maps with their classes called as those that they overlap most, one to one; others get numbers above."""
    own, other = int(maps.max()) + 1, int(reference.max()) + 1
    counts = Confusion(own, other)
    counts.update(maps, reference)
    names = match(counts.matrix)
    spare = iter(range(other, other + own))
    return np.array([name if name >= 0 else next(spare) for name in names])[maps]


def _enlarged(labels: NDArray[np.int64], image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return a small map (S, S) at the size of an image (H, W, 3)."""
    side = labels.shape[0]
    rows = np.arange(image.shape[0]) * side // image.shape[0]
    columns = np.arange(image.shape[1]) * side // image.shape[1]
    enlarged: NDArray[np.int64] = labels[rows[:, None], columns]
    return enlarged
