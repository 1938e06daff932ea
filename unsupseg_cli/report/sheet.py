"""Contact sheets: rows of pictures under headings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.report.letters import font_for
from unsupseg_cli.report.overlay import blend, colorize, error_map, fit_text, legend
from unsupseg_cli.report.palette import UNMATCHED_COLOR, VOID_COLOR

Picture = Image.Image | NDArray[np.uint8] | None
INK, FAINT = (30, 30, 30), (110, 110, 110)


@dataclass(frozen=True, eq=False)
class Sample:
    """One row of a contact sheet.

    ``image`` uint8 (H, W, 3); ``prediction`` class ids (H, W), -1 for an unmatched cluster; ``truth`` class
    ids, -1 for void, or None without labels; ``name`` and ``note`` (a score, say) are printed.
    """

    image: NDArray[np.uint8]
    prediction: ArrayLike
    truth: ArrayLike | None = None
    name: str = ""
    note: str = ""


def sheet(
    samples: Sequence[Sample],
    colors: NDArray[np.uint8],
    names: Sequence[str] | None = None,
    *,
    title: str = "",
    cell: int = 320,
) -> Image.Image:
    """Return a contact sheet: image, overlay and prediction, with truth and errors where labels exist.

    Below stands a legend of the classes that occur.

    Args:
        samples: the rows.
        colors: (classes, 3) uint8.
        names: of the classes, for the legend.
        title: printed on top.
        cell: width of a picture in pixels.
    """
    labelled = any(sample.truth is not None for sample in samples)
    headings = ["image", "overlay", "prediction", *(["truth", "errors"] if labelled else [])]
    rows: list[list[Picture]] = []
    for sample in samples:
        row: list[Picture] = [
            sample.image,
            blend(sample.image, sample.prediction, colors),
            colorize(sample.prediction, colors, void_color=UNMATCHED_COLOR),
        ]
        if labelled and sample.truth is not None:
            row += [
                colorize(sample.truth, colors),
                error_map(sample.prediction, sample.truth, sample.image),
            ]
        rows.append(row)
    labels = ["   ".join(filter(None, (sample.name, sample.note))) for sample in samples]
    footer = None
    if names is not None:
        footer = _legend(samples, names, colors, width=_width(len(headings), cell), size=_letters(cell))
    return grid(rows, headings, labels, title=title, cell=cell, footer=footer)


def grid(
    rows: Sequence[Sequence[Picture]],
    headings: Sequence[str] = (),
    labels: Sequence[str] = (),
    *,
    swatches: Sequence[tuple[int, int, int]] = (),
    title: str = "",
    cell: int = 320,
    footer: Image.Image | None = None,
) -> Image.Image:
    """Return rows of pictures as one image on white.

    Each row is as high as its first picture at the cell's width; others are fitted inside and centred.

    Args:
        rows: pictures; None leaves a cell empty, a short row its end.
        headings: one per column, of one or more lines.
        labels: one per row, printed under it.
        swatches: a colour per row, beside its label.
        title: printed on top.
        cell: width of a picture in pixels.
        footer: pasted below, a legend say.

    Raises:
        UsageError: no picture at all.
    """
    columns = max([len(headings), *(len(row) for row in rows)], default=0)
    if not columns or not any(picture is not None for row in rows for picture in row):
        raise UsageError("A contact sheet needs at least one picture, got none.")
    gap, size = _gap(cell), _letters(cell)
    line = round(1.7 * size)
    lines = max((heading.count("\n") + 1 for heading in headings), default=0)
    heights = [_height(row, cell) for row in rows]
    top = gap + (round(1.6 * line) if title else 0)
    body = top + lines * line
    label_heights = [line if index < len(labels) and labels[index] else 0 for index in range(len(rows))]
    total = body + sum(heights) + sum(label_heights) + gap * len(rows) + (footer.height if footer else 0)
    width = _width(columns, cell)
    page = Image.new("RGB", (width, total), "white")
    draw = ImageDraw.Draw(page)
    if title:
        _write(draw, (gap, gap + line / 2), title, width - 2 * gap, INK, round(1.3 * size))
    for column, heading in enumerate(headings):
        for number, text in enumerate(heading.split("\n")):
            place = (gap + column * (cell + gap), top + (number + 0.5) * line - gap / 4)
            _write(draw, place, text, cell, INK, size)
    y = body
    for index, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, picture in enumerate(row):
            if picture is not None:
                fitted = _fit(picture, cell, height)
                x = gap + column * (cell + gap) + (cell - fitted.width) // 2
                page.paste(fitted, (x, y + (height - fitted.height) // 2))
        y += height
        if label_heights[index]:
            left = gap
            if index < len(swatches):
                draw.rectangle(
                    (gap, y + (line - size) / 2, gap + size, y + (line + size) / 2), swatches[index]
                )
                left += round(1.5 * size)
            _write(draw, (left, y + line / 2), labels[index], width - left - gap, FAINT, size)
        y += label_heights[index] + gap
    if footer:
        page.paste(footer, (0, y))
    return page


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    width: float,
    color: tuple[int, int, int],
    size: int,
) -> None:
    """Write a line whose middle left end is at a place, shortened to a width."""
    font = font_for(text, size)
    draw.text(place, fit_text(text, font, width), color, font, anchor="lm")


def _legend(
    samples: Sequence[Sample], names: Sequence[str], colors: NDArray[np.uint8], *, width: int, size: int
) -> Image.Image:
    """Return the legend of the classes that occur, and of pixels without one where there are any.

    Predictions without one are unmatched where there is a truth to match, else of pixels without data, say.
    """
    predicted = {int(value) for sample in samples for value in np.unique(sample.prediction)}
    true = {int(value) for s in samples if s.truth is not None for value in np.unique(s.truth)}
    present = sorted((predicted | true) - {VOID})
    present += [len(names)] * (VOID in predicted) + [len(names) + 1] * (VOID in true)
    extended = np.concatenate([colors[: len(names)], np.array([UNMATCHED_COLOR, VOID_COLOR], np.uint8)])
    without = "unmatched" if true else "no class"
    return legend([*names, without, "void"], extended, present, width=width, size=size)


def _gap(cell: int) -> int:
    return max(4, cell // 32)


def _letters(cell: int) -> int:
    return max(10, round(cell / 20))


def _width(columns: int, cell: int) -> int:
    return columns * (cell + _gap(cell)) + _gap(cell)


def _height(row: Sequence[Picture], cell: int) -> int:
    """Return the height of a row: its first picture's at the cell's width, at most twice the width."""
    for picture in row:
        if picture is not None:
            image = _image(picture)
            return max(1, min(2 * cell, round(cell * image.height / image.width)))
    return cell // 2


def _image(picture: Image.Image | NDArray[np.uint8]) -> Image.Image:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return image.convert("RGB")


def _fit(picture: Image.Image | NDArray[np.uint8], width: int, height: int) -> Image.Image:
    """Return the picture scaled to fit; flat colours are enlarged without inventing colours between them."""
    image = _image(picture)
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if scale < 1:
        return image.resize(size, Image.Resampling.LANCZOS)
    flat = image.getcolors(256) is not None
    return image.resize(size, Image.Resampling.NEAREST if flat else Image.Resampling.BICUBIC)
