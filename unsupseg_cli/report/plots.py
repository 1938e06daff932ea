"""Plots with matplotlib's object API: no global state, no display, a figure per call."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from unsupseg_cli.core.errors import UsageError

BLUE, GRAY, INK = "#2a6fb0", "#b8bec6", "#222222"


def save(picture: Figure | Image.Image, path: Path | str) -> None:
    """Write a figure or an image as the file type that the suffix names; bytes do not depend on the time."""
    if isinstance(picture, Image.Image):
        picture.save(path)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+")  # of names in other scripts: boxes stand for them
            if Path(path).suffix == ".png":  # `savefig` draws twice
                canvas: Any = FigureCanvasAgg(picture)
                canvas.draw()
                Image.fromarray(np.asarray(canvas.buffer_rgba())).save(path, dpi=(picture.dpi, picture.dpi))
            else:
                picture.savefig(path)


def _plain(names: Sequence[str]) -> list[str]:
    """Return names that others chose so that nothing in them is read as a formula."""
    return [name.replace("$", r"\$") for name in names]


def confusion_figure(confusion: ArrayLike, names: Sequence[str], title: str = "") -> Figure:
    """Return the confusion as an image: rows are true classes in percent, columns predicted ones.

    Args:
        confusion: (classes, classes) or (classes, classes + 1) counts by [true, predicted], the extra column
            being unmatched clusters (``Scores.confusion``).
        names: of the classes.
        title: printed on top.
    """
    counts = np.asarray(confusion, np.float64)
    classes = len(counts)
    if counts.ndim != 2 or counts.shape[1] not in (classes, classes + 1) or len(names) != classes:
        raise UsageError(f"A confusion {counts.shape} does not fit {len(names)} class names.")
    if counts.shape[1] > classes and not counts[:, -1].any():
        counts = counts[:, :-1]
    total = counts.sum(1, keepdims=True)
    share = np.divide(100 * counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    names = _plain(names)
    columns = [*names, "unmatched"][: counts.shape[1]]
    cell = 0.42 if classes <= 30 else 0.16
    letters = 9 if classes <= 30 else 5
    figure, axes = _figure(max(4.5, 2.6 + cell * len(columns)), max(3.6, 2.0 + cell * classes))
    axes.set_facecolor("#eeeeee")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(
        range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=letters
    )
    axes.set_yticks(range(classes), names, fontsize=letters)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (each row sums to 100 %)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if classes <= 30:
        for row, column in zip(*np.nonzero(share >= 0.5), strict=True):
            color = "white" if share[row, column] > 55 else INK
            axes.text(
                column, row, f"{share[row, column]:.0f}", ha="center", va="center", fontsize=7, color=color
            )
    _title(axes, title)
    return figure


def iou_figure(
    iou: ArrayLike,
    names: Sequence[str],
    *,
    mean: float | None = None,
    colors: NDArray[np.uint8] | None = None,
    title: str = "",
) -> Figure:
    """Return one bar per class; a class that occurs in neither truth nor prediction (NaN) is named absent.

    Args:
        iou: (classes,) in [0, 1].
        names: of the classes.
        mean: mIoU, drawn as a line.
        colors: (classes, 3) uint8 of the bars, blue by default.
        title: printed on top.
    """
    values = np.asarray(iou, np.float64)
    if len(values) != len(names):
        raise UsageError(f"{len(values)} IoU values do not fit {len(names)} class names.")
    figure, axes = _figure(7.0, max(2.4, 1.3 + 0.26 * len(values)))
    places = np.arange(len(values))
    fill: Any = BLUE if colors is None else colors / 255
    axes.barh(places, 100 * np.nan_to_num(values), color=fill, height=0.72)
    halo = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for place, value in enumerate(values):
        text, end = ("absent", 0.0) if np.isnan(value) else (f"{100 * value:.1f}", 100 * float(value))
        axes.text(end + 1, place, text, va="center", fontsize=8, color=INK, bbox=halo)
    if mean is not None:
        axes.axvline(100 * mean, color=INK, linewidth=1, linestyle="--", zorder=0)
        axes.text(100 * mean, -0.75, f"mIoU {100 * mean:.1f}", ha="center", va="bottom", fontsize=8)
    axes.set_yticks(places, _plain(names), fontsize=9)
    axes.set_ylim(len(values) - 0.4, -0.7)
    axes.set_xlim(0, 107)
    axes.set_xlabel("IoU in %")
    _hide_frame(axes)
    _title(axes, title, pad=20)
    return figure


def progress_figure(
    records: Sequence[Mapping[str, Any]],
    *,
    x: str = "step",
    title: str = "",
    columns: int = 3,
    explained: Mapping[str, str] = MappingProxyType({}),
) -> Figure:
    """Return training curves: one panel per number that the records hold, over ``x``.

    Long series are drawn faintly with a running median on top, which a legend says; records may lack a number.

    Args:
        records: such as ``{"step": 10, "loss": 0.3, "lr": 5e-3}``.
        x: key of the horizontal axis; without it records are counted.
        title: printed on top.
        columns: panels side by side.
        explained: what a number is and what is good, written over its panel.
    """
    keys = list(dict.fromkeys(key for record in records for key in record if key != x))
    series = {key: _series(records, key, x) for key in keys}
    series = {key: pair for key, pair in series.items() if len(pair[0])}
    if not series:
        raise UsageError("A progress plot needs at least one record with a number, got none.")
    columns = min(columns, len(series))
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.4, 2.9 * rows + 0.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (key, (steps, values)) in zip(panels, series.items(), strict=False):
        smooth = len(values) > 60
        axes.plot(
            steps,
            values,
            color=GRAY if smooth else BLUE,
            linewidth=0.8 if smooth else 1.6,
            label=f"each {x} logged",
        )
        if smooth:
            median = _running_median(values, len(values) // 20)
            axes.plot(steps, median, color=BLUE, linewidth=1.6, label="running median")
            axes.legend(fontsize=7, frameon=False)
        axes.set_title(textwrap.fill(explained.get(key, ""), 58), fontsize=7, loc="left", color=INK)
        axes.tick_params(labelsize=8)
        axes.set_xlabel(x, fontsize=8)
        axes.set_ylabel(key.replace("_", " "), fontsize=10, color=INK)
        axes.ticklabel_format(axis="y", useOffset=False)
        _hide_frame(axes)
    for axes in panels[len(series) :]:
        axes.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left")
    return figure


def criterion_figure(
    numbers: Sequence[int],
    values: Sequence[float],
    *,
    best: int,
    level: float,
    label: str,
    note: str,
    floor: int,
    floor_note: str,
) -> Figure:
    """Return a criterion over numbers of classes, with the one that a rule takes.

    Args:
        numbers: of classes.
        values: of the criterion.
        best: the number taken.
        level: the least value that the rule takes, drawn as a line.
        label: name of the criterion.
        note: what the level is.
        floor: the least number that the rule takes, drawn as a line.
        floor_note: what it is.
    """
    figure, axes = _figure(6.0, 3.0)
    axes.plot(numbers, values, color=BLUE, linewidth=1.6, marker="o", markersize=3.5)
    axes.axhline(level, color=GRAY, linewidth=1, linestyle="--")
    axes.text(numbers[0], level, note, ha="left", va="top", fontsize=8, color=INK)
    axes.axvline(best, color=INK, linewidth=1)
    axes.axvline(floor, color=GRAY, linewidth=1, linestyle="--")
    halo = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.text(floor, 0.02 * max(values), f" {floor_note}", va="bottom", fontsize=8, color=INK, bbox=halo)
    axes.set_ylim(min(0.0, *values), 1.15 * max(*values, 1e-3))
    axes.set_xlabel("number of classes", fontsize=9)
    axes.set_ylabel(label, fontsize=9)
    axes.tick_params(labelsize=8)
    _hide_frame(axes)
    _title(axes, f"{best} classes")
    return figure


def candidates_figure(
    names: Sequence[str], values: ArrayLike, confirmed: NDArray[np.float64], title: str = ""
) -> Figure:
    """Return a label-free criterion of segmentations, a bar for each, beside what each one confirms of the others.

    Args:
        names: of the segmentations, best first.
        values: the criterion of each.
        confirmed: share of each (row) that each other one (column) confirms, (n, n); the diagonal is left white.
        title: printed on top.
    """
    count, labels = len(names), [textwrap.fill(name, 60) for name in names]
    lines = sum(max(2, label.count("\n") + 1) for label in labels)
    figure = Figure(figsize=(11, max(2.4, 0.9 + 0.15 * lines)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    bars, pairs = figure.subplots(1, 2, width_ratios=(3, 2))
    places = np.arange(count)
    bars.barh(places, values, color=[BLUE, *[GRAY] * (count - 1)])
    bars.set_yticks(places, labels, fontsize=7)
    bars.invert_yaxis()
    bars.set_xlabel("contrast at borders times agreement with other looks", fontsize=8)
    bars.tick_params(labelsize=7)
    _hide_frame(bars)
    own = np.where(np.eye(count, dtype=bool), np.nan, confirmed)
    drawn = pairs.imshow(own, cmap="Blues", vmin=0)
    pairs.set_xticks(places, places + 1, fontsize=6)
    pairs.set_yticks(places, places + 1, fontsize=6)
    pairs.set_title("share of each row that the column confirms", fontsize=8, color=INK, loc="left")
    pairs.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=pairs, shrink=0.8).ax.tick_params(labelsize=6)
    _title(bars, title)
    return figure


def as_image(figure: Figure) -> Image.Image:
    """Return a figure as a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _hide_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _title(axes: Axes, title: str, pad: float = 8) -> None:
    if title:
        axes.set_title(title, fontsize=11, color=INK, loc="left", pad=pad)


def _series(
    records: Sequence[Mapping[str, Any]], key: str, x: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return steps and values of the records where ``key`` is a finite number."""
    pairs = [
        (record.get(x, index), record[key])
        for index, record in enumerate(records)
        if isinstance(record.get(key), int | float) and np.isfinite(record[key])
    ]
    table = np.array(pairs, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _running_median(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the median of a centred window of about ``width`` values, smaller at the ends."""
    half = max(1, width // 2)
    padded = np.pad(values, half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    median: NDArray[np.float64] = np.nanmedian(windows, axis=1)
    return median
