"""The one place that resizes and crops, and that knows which original pixel a view pixel shows.

Coordinates are continuous: the centre of pixel (row 0, column 0) is (x, y) = (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from pydantic import model_validator

from unsupseg_cli.core.bounds import LONGEST_SIDE
from unsupseg_cli.core.config import Config, setting
from unsupseg_cli.core.options import CROPS, GeometryName, ResizeFilter

Box = tuple[float, float, float, float]
Value = TypeVar("Value", bound=np.generic)

_LONGEST = 16  # longer side of a view over its size, where the image is enlarged: a row of 4,000 pixels has few tokens
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class View:
    """A rectangle of an image, resized to (height, width) and possibly mirrored left to right.

    Attributes:
        crop: Number of the view within its image.
        box: Left, top, right, bottom in original pixels; need not lie on whole pixels.
        height: Rows of the view.
        width: Columns of the view.
        flip: Whether the view is mirrored.
    """

    crop: int
    box: Box
    height: int
    width: int
    flip: bool = False

    def to_original(self, xy: ArrayLike) -> NDArray[np.float64]:
        """Map points (..., 2) as x, y of the view to x, y of the original image."""
        points = np.array(xy, dtype=np.float64)
        left, top, right, bottom = self.box
        if self.flip:
            points[..., 0] = self.width - points[..., 0]
        return points * [(right - left) / self.width, (bottom - top) / self.height] + [left, top]

    def boxes_to_original(self, boxes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Map boxes (M, 4), as left, top, right, bottom of the view, to the original image."""
        corners = self.to_original(boxes.reshape(-1, 2, 2))
        return np.concatenate(
            [corners.min(1), corners.max(1)], axis=1
        )  # a mirrored view turns left and right

    def to_view(self, xy: ArrayLike) -> NDArray[np.float64]:
        """Map points (..., 2) as x, y of the original image to x, y of the view."""
        left, top, right, bottom = self.box
        points = np.asarray(xy, dtype=np.float64) - [left, top]
        points = points * [self.width / (right - left), self.height / (bottom - top)]
        if self.flip:
            points[..., 0] = self.width - points[..., 0]
        return np.asarray(points)


class Geometry(Config):
    """How an image becomes views, and back."""

    kind: GeometryName = setting("native", "How an image becomes views.")
    size: int | tuple[int, int] | None = setting(
        320,
        "Side of a view in pixels, snapped to the patch size (320 stays 320 at patch 8 and 16 and becomes 322 "
        "at 14); height and width for squash; None keeps the size (native only).",
        source="320: the evaluation size of STEGO and its successors",
    )
    ratios: tuple[float, ...] = setting(
        (0.5,),
        "Sides of five- and ten-crops over the image's; several make crops of several scales.",
        source="0.5: STEGO, published code; 0.5,0.8 and 0.3 to 0.7: CAUSE, published code",
    )
    filter: ResizeFilter = setting(
        "bilinear",
        "Filter of the resize: nearest, bilinear and bicubic as Pillow does it, the last two antialiased; tensor as "
        "torch does it, bilinear without antialiasing, and labels by the pixel at or before.",
        source="STEGO evaluates with nearest, PiCIE with bilinear, PriMaPs-EM with tensor",
    )

    @model_validator(mode="after")
    def _size_fits_kind(self) -> Geometry:
        sides = self.size if isinstance(self.size, tuple) else (self.size,)
        if any(side is not None and side < 1 for side in sides):
            raise ValueError(f"size must be positive, got {self.size}")
        if any(side is not None and side > LONGEST_SIDE for side in sides):
            raise ValueError(f"size must be at most {LONGEST_SIDE:,} pixels, got {self.size}")
        if self.size is None and self.kind != "native":
            raise ValueError(f"geometry '{self.kind}' needs a size")
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"ratios of crops must lie in (0, 1], got {self.ratios}")
        if isinstance(self.size, tuple) and self.kind != "squash":
            raise ValueError(
                f"geometry '{self.kind}' takes one number as size; only squash takes height and width"
            )
        return self

    def views(self, height: int, width: int, patch: int, *, flip: bool = False) -> list[View]:
        """Lay out the views of an image, and with ``flip`` the mirror images; sides are multiples of ``patch``."""
        views = self._views(height, width, patch)
        return [*views, *_mirrored(views)] if flip else views

    def _views(self, height: int, width: int, patch: int) -> list[View]:
        image_box = (0.0, 0.0, float(width), float(height))
        if self.kind == "stego":
            return [_centre_square(0, image_box, snap(self._side, patch))]
        if self.kind in CROPS:
            side = snap(self._side, patch)
            boxes = self._crop_boxes(height, width)
            views = [_centre_square(i, box, side) for i, box in enumerate(boxes)]
            return [*views, *_mirrored(views)] if self.kind == "ten-crop" else views
        if self.kind == "squash":
            rows, columns = self.size if isinstance(self.size, tuple) else (self._side, self._side)
            return [View(0, image_box, snap(rows, patch), snap(columns, patch))]
        scale = 1.0 if self.size is None else snap(self._side, patch) / min(height, width)
        if self.is_strip(height, width):
            scale = max(1.0, _LONGEST * self._side / max(height, width))
        return [View(0, image_box, snap(height * scale, patch), snap(width * scale, patch))]

    def is_strip(self, height: int, width: int) -> bool:
        """Tell whether an image is so long and narrow that its view (native) stays smaller than ``size``."""
        if self.kind != "native" or self.size is None:
            return False
        return min(height, width) < self._side and max(height, width) > _LONGEST * min(height, width)

    def render(self, image: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
        """Return what a view shows of an image (H, W, 3): (height, width, 3) uint8.

        A view of ``five-crop`` or ``ten-crop`` is resized from its crop alone, as if it were an image; the antialiased
        filters of the other geometries reach over the border of the view where the image goes on.
        """
        return render_part(image, self._part(view, *image.shape[:2]), view, self.filter)

    def weights(self, view: View, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return `render` of a view of the whole image (height, width) as two matrices, (h, height) and (w, width).

        Per channel: columns first, rounded to whole values, then rows, rounded again.
        """
        return self._axis_weights(height, view.height), self._axis_weights(width, view.width)

    def _axis_weights(self, length: int, target: int) -> NDArray[np.float32]:
        impulses = np.eye(length, dtype=np.float32)
        if self.filter == "nearest":
            return impulses[_nearest(length, target)]
        if self.filter == "tensor":
            return _resized(impulses[..., None], target, length)[..., 0]
        filtered = Image.fromarray(impulses).resize((target, length), _RESAMPLING[self.filter])
        return np.asarray(filtered).T.copy()

    def render_label(self, label: NDArray[np.int16], view: View) -> NDArray[np.int16]:
        """Return what a view shows of a label map (H, W), by nearest neighbour: (height, width) int16."""
        nearest = _at_or_before if self.filter == "tensor" else _nearest
        return label[np.ix_(*_shown(self._part(view, *label.shape), view, nearest))]

    def _part(self, view: View, height: int, width: int) -> Box:
        """Return what of an image is resized before a view is cut from it: the image, or its crop."""
        if self.kind not in CROPS:
            return (0.0, 0.0, float(width), float(height))
        boxes = self._crop_boxes(height, width)
        return boxes[view.crop % len(boxes)]

    def _crop_boxes(self, height: int, width: int) -> list[Box]:
        return [box for ratio in self.ratios for box in _five_boxes(height, width, ratio)]

    @property
    def _side(self) -> int:
        assert isinstance(self.size, int)
        return self.size


def render_part(image: NDArray[np.uint8], part: Box, view: View, resize: ResizeFilter) -> NDArray[np.uint8]:
    """Return what a view shows of an image (H, W, 3): (height, width, 3) uint8.

    The filter sees the ``part``, in whole pixels, alone, as if it were an image; what of it lies outside of the view
    counts as well.
    """
    x0, y0, x1, y1 = map(int, part)
    if resize == "nearest":
        return image[np.ix_(*_shown(part, view, _nearest))]
    if resize == "tensor":
        (top, rows), (left, columns) = _placement(part, view)
        resized = _resized(image[y0:y1, x0:x1].astype(np.float32), rows, columns)
        array = resized[top : top + view.height, left : left + view.width].round().astype(np.uint8)
    else:
        left_edge, top_edge, right_edge, bottom_edge = view.box
        box = _clipped((left_edge - x0, top_edge - y0, right_edge - x0, bottom_edge - y0), (y1 - y0, x1 - x0))
        shown = Image.fromarray(image[y0:y1, x0:x1])
        array = np.asarray(shown.resize((view.width, view.height), _RESAMPLING[resize], box=box))
    return np.ascontiguousarray(array[:, ::-1]) if view.flip else array


def _mirrored(views: Sequence[View]) -> list[View]:
    """Return the mirror images of some views of an image, with numbers beyond theirs."""
    return [replace(view, crop=view.crop + len(views), flip=True) for view in views]


def _placement(part: Box, view: View) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return, for rows and columns, where a view begins in its resized image or crop, and how long that is."""
    left, top, right, bottom = view.box
    per_row, per_column = view.height / (bottom - top), view.width / (right - left)
    return (
        (round((top - part[1]) * per_row), round((part[3] - part[1]) * per_row)),
        (round((left - part[0]) * per_column), round((part[2] - part[0]) * per_column)),
    )


def _nearest(length: int, target: int) -> NDArray[np.int64]:
    """Return which of ``length`` pixels each of ``target`` ones shows, as Pillow decides: ties fall by its rounding."""
    line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    shown: NDArray[np.int64] = np.asarray(line.resize((target, 1), Image.Resampling.NEAREST))[0].astype(
        np.int64
    )
    return shown


def _at_or_before(length: int, target: int) -> NDArray[np.int64]:
    """Return which of ``length`` pixels each of ``target`` ones shows, as `torch.nn.functional.interpolate` decides."""
    import torch

    line = torch.arange(length, dtype=torch.float32)[None, None]
    shown: NDArray[np.int64] = (
        torch.nn.functional.interpolate(line, target, mode="nearest")[0, 0].long().numpy()
    )
    return shown


def _shown(
    part: Box, view: View, nearest: Callable[[int, int], NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows and columns of an image that a view shows of a part of it, one for each of its own."""
    x0, y0, x1, y1 = map(int, part)
    (top, all_rows), (left, all_columns) = _placement(part, view)
    rows = y0 + nearest(y1 - y0, all_rows)[top : top + view.height]
    columns = x0 + nearest(x1 - x0, all_columns)[left : left + view.width]
    return rows, columns[::-1] if view.flip else columns


def _resized(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Return values (H, W, C) as (height, width, C), as torchvision's Resize treats a tensor without antialiasing."""
    import torch

    maps = torch.from_numpy(np.ascontiguousarray(values)).movedim(-1, 0)[None]
    resized = torch.nn.functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    array: NDArray[np.float32] = resized[0].movedim(0, -1).numpy()
    return array


def snap(side: float, patch: int) -> int:
    """Return the multiple of ``patch`` nearest to ``side``, at least one patch."""
    return max(1, int(side / patch + 0.5)) * patch


def seen(view: View, height: int, width: int) -> NDArray[np.bool_]:
    """Return which pixels of the original (height, width) have their centre inside a view."""
    left, top, right, bottom = view.box
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    return ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))[None, :]


def place(
    view_map: NDArray[Value],
    view: View,
    height: int,
    width: int,
    fill: Any,
    onto: NDArray[Value] | None = None,
) -> NDArray[Value]:
    """Bring a map of a view back to the original size by nearest neighbour.

    Args:
        view_map: Map (h, w, ...) of any resolution over the view.
        view: Where the map belongs.
        height: Rows of the original image.
        width: Columns of the original image.
        fill: Value of the pixels that the view did not see.
        onto: Map of the original size to write into, instead of a new one full of ``fill``.
    """
    if onto is None:
        onto = np.full((height, width, *view_map.shape[2:]), fill, dtype=view_map.dtype)
    mask = seen(view, height, width)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x = view.to_view(np.stack([columns + 0.5, np.zeros(len(columns))], axis=-1))[:, 0]
    y = view.to_view(np.stack([np.zeros(len(rows)), rows + 0.5], axis=-1))[:, 1]
    from_rows = _pixel_index(y * (view_map.shape[0] / view.height), view_map.shape[0])
    from_columns = _pixel_index(x * (view_map.shape[1] / view.width), view_map.shape[1])
    onto[np.ix_(rows, columns)] = view_map[np.ix_(from_rows, from_columns)]
    return onto


def _centre_square(crop: int, box: Box, side: int) -> View:
    """Resize the shorter side of a box to ``side`` and cut the middle square.

    The longer side is rounded down and the offset rounded to a whole resized pixel, as torchvision's Resize
    and CenterCrop do, so that published protocols see the same pixels.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    shorter = min(width, height)
    resized_width, resized_height = int(side * width / shorter), int(side * height / shorter)
    step_x, step_y = width / resized_width, height / resized_height
    x = left + round((resized_width - side) / 2) * step_x
    y = top + round((resized_height - side) / 2) * step_y
    return View(crop, (x, y, x + side * step_x, y + side * step_y), side, side)


def _five_boxes(height: int, width: int, ratio: float) -> list[Box]:
    """Return four corners and the centre: top left, top right, bottom left, bottom right, centre."""
    h, w = max(1, int(height * ratio)), max(1, int(width * ratio))
    corners = [(0, 0), (0, width - w), (height - h, 0), (height - h, width - w)]
    centre = (round((height - h) / 2), round((width - w) / 2))
    return [(float(x), float(y), float(x + w), float(y + h)) for y, x in [*corners, centre]]


def sample_nearest(values: NDArray[Value], view: View) -> NDArray[Value]:
    """Return what a view, of any box, shows of values (H, W, ...) by the pixel under the centre of each of its own."""
    columns = view.to_original(np.stack([np.arange(view.width) + 0.5, np.zeros(view.width)], axis=-1))[:, 0]
    rows = view.to_original(np.stack([np.zeros(view.height), np.arange(view.height) + 0.5], axis=-1))[:, 1]
    return values[np.ix_(_pixel_index(rows, values.shape[0]), _pixel_index(columns, values.shape[1]))]


def _pixel_index(positions: NDArray[np.float64], length: int) -> NDArray[np.int64]:
    return np.clip(np.floor(positions).astype(np.int64), 0, length - 1)


def _clipped(box: Box, shape: tuple[int, ...]) -> Box:
    """Take rounding errors off a box that touches the border."""
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], shape[1]), min(box[3], shape[0])
