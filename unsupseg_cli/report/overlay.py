"""Label maps as pictures: flat colours, blended over the image, errors, and a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.report.letters import Font, font_for
from unsupseg_cli.report.palette import VOID_COLOR, check_labels

WRONG_COLOR = (214, 60, 40)
RIGHT_COLOR = (225, 232, 228)


def colorize(
    labels: ArrayLike, colors: NDArray[np.uint8], void_color: tuple[int, int, int] = VOID_COLOR
) -> NDArray[np.uint8]:
    """Return a label map (H, W) as flat colours (H, W, 3); -1 takes the colour ``void_color``, black by default.

    Raises:
        UsageError: a label is neither VOID nor in [0, len(colors)).
    """
    ids = np.asarray(labels)
    check_labels(ids, len(colors))
    table = np.concatenate([colors, np.array([void_color], np.uint8)])
    return table[np.where(ids == VOID, len(colors), ids)]


def blend(
    image: ArrayLike,
    labels: ArrayLike,
    colors: NDArray[np.uint8],
    *,
    opacity: float = 0.55,
    boundaries: bool = True,
) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) tinted by its label map (H, W), with white lines between classes.

    Void stays untinted.

    Args:
        image: uint8 RGB.
        labels: class ids, VOID (-1) for none.
        colors: (classes, 3) uint8.
        opacity: 0 shows the image, 1 the flat colours.
        boundaries: draw the lines; their width grows with the image.

    Raises:
        UsageError: sizes differ or a label has no colour.
    """
    pixels, ids = np.asarray(image), np.asarray(labels)
    if pixels.shape != (*ids.shape, 3):
        raise UsageError(f"An overlay needs an image (H, W, 3) for labels {ids.shape}, found {pixels.shape}.")
    # Tables of the 256 values and of the colours: photos of phones have 36 million values.
    kept = ((1 - opacity) * np.arange(256)).round().astype(np.uint8)
    tint = colorize(ids, np.floor(opacity * colors.astype(float)).astype(np.uint8), (0, 0, 0))
    blended: NDArray[np.uint8] = kept[pixels]
    blended += tint
    void = ids == VOID
    if void.any():
        blended[void] = pixels[void]
    if boundaries:
        blended[_boundaries(ids, width=max(1, round(min(ids.shape) / 300)))] = 255
    return blended


def error_map(prediction: ArrayLike, truth: ArrayLike, image: ArrayLike | None = None) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3): wrong pixels red, right ones light, void black.

    Args:
        prediction: classes (H, W) after matching; -1 (an unmatched cluster) is an error.
        truth: classes (H, W); -1 is void.
        image: uint8 (H, W, 3); where given, its gray version shows through.

    Raises:
        UsageError: sizes differ.
    """
    predicted, true = np.asarray(prediction), np.asarray(truth)
    if predicted.shape != true.shape:
        raise UsageError(f"A prediction {predicted.shape} and its labels {true.shape} differ in size.")
    right = (predicted == true)[..., None]
    picture = np.where(right, RIGHT_COLOR, WRONG_COLOR).astype(np.float64)
    if image is not None:
        gray = np.asarray(Image.fromarray(np.asarray(image)).convert("L"), np.float64)[..., None]
        weight = np.where(right, 0.5, 0.8)
        picture = weight * picture + (1 - weight) * gray
    picture[true == VOID] = VOID_COLOR
    return picture.round().astype(np.uint8)


def legend(
    names: Sequence[str],
    colors: NDArray[np.uint8],
    present: Sequence[int] | None = None,
    *,
    width: int = 1000,
    size: int = 16,
) -> Image.Image:
    """Return a legend: a colour swatch and a name per class, in as many lines as the width needs.

    Args:
        names: of all classes.
        colors: (classes, 3) uint8.
        present: classes to show, all by default.
        width: of the picture in pixels.
        size: of the letters in pixels.
    """
    shown = range(len(names)) if present is None else present
    gap, swatch, line = size, size, round(1.7 * size)
    places, x, y = [], gap, gap // 2
    for index in shown:
        font = font_for(names[index], size)
        text = fit_text(names[index], font, width - 3 * gap - swatch)
        advance = swatch + gap // 2 + round(font.getlength(text)) + round(1.5 * gap)
        if x > gap and x + advance > width:
            x, y = gap, y + line
        places.append((index, text, font, x, y))
        x += advance
    picture = Image.new("RGB", (width, y + line + gap // 2), "white")
    draw = ImageDraw.Draw(picture)
    for index, text, font, x, y in places:
        middle = y + line // 2
        box = (x, middle - swatch // 2, x + swatch, middle + swatch // 2)
        draw.rounded_rectangle(
            box, size // 5, fill=tuple(int(v) for v in colors[index]), outline=(90, 90, 90)
        )
        draw.text((x + swatch + gap // 2, middle), text, (30, 30, 30), font, anchor="lm")
    return picture


def fit_text(text: str, font: Font, width: float) -> str:
    """Return the text, its middle replaced by dots if it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    for keep in range(len(text) - 1, 1, -1):
        short = text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]
        if font.getlength(short) <= width:
            return short
    return text[:1] + "…"


def _boundaries(labels: NDArray[np.generic], width: int) -> NDArray[np.bool_]:
    """Return the pixels (H, W) that lie on a line of about ``width`` pixels between different labels."""
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    for _ in range(width - 1):
        grown = edge.copy()
        grown[:, 1:] |= edge[:, :-1]
        grown[1:] |= edge[:-1]
        edge = grown
    return edge
