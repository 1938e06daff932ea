"""The one place that resizes and crops, and that knows which original pixel a view pixel shows.

Coordinates are continuous: the centre of pixel (row 0, column 0) is (x, y) = (0.5, 0.5).
"""

from __future__ import annotations

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
        "Filter of the image resize; all but nearest are antialiased.",
        source="STEGO evaluates with nearest, PiCIE and PriMaPs-EM with bilinear",
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

    def views(self, height: int, width: int, patch: int) -> list[View]:
        """Lay out the views of an image; their sides are multiples of ``patch``."""
        image_box = (0.0, 0.0, float(width), float(height))
        if self.kind == "stego":
            return [_centre_square(0, image_box, snap(self._side, patch))]
        if self.kind in CROPS:
            side = snap(self._side, patch)
            boxes = self._crop_boxes(height, width)
            views = [_centre_square(i, box, side) for i, box in enumerate(boxes)]
            mirrored = [replace(view, crop=view.crop + len(boxes), flip=True) for view in views]
            return views + mirrored if self.kind == "ten-crop" else views
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

        A view of ``five-crop`` or ``ten-crop`` is resized from its crop alone, as if it were an image; the filters
        of the other geometries reach over the border of the view where the image goes on.
        """
        if self.kind in CROPS:
            boxes = self._crop_boxes(*image.shape[:2])
            return render_part(image, boxes[view.crop % len(boxes)], view, self.filter)
        return render_part(image, None, view, self.filter)

    def weights(self, view: View, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return `render` of a view of the whole image (height, width) as two matrices, (h, height) and (w, width).

        Per channel: columns first, rounded to whole values, then rows, rounded again.
        """
        return self._axis_weights(height, view.height), self._axis_weights(width, view.width)

    def _axis_weights(self, length: int, target: int) -> NDArray[np.float32]:
        impulses = np.eye(length, dtype=np.float32)
        if self.filter == "nearest":
            return impulses[_pixel_index(np.arange(0.5, target) * (length / target), length)]
        filtered = Image.fromarray(impulses).resize((target, length), _RESAMPLING[self.filter])
        return np.asarray(filtered).T.copy()

    def render_label(self, label: NDArray[np.int16], view: View) -> NDArray[np.int16]:
        """Return what a view shows of a label map (H, W), by nearest neighbour: (height, width) int16."""
        return _sample_nearest(label, view)

    def _crop_boxes(self, height: int, width: int) -> list[Box]:
        return [box for ratio in self.ratios for box in _five_boxes(height, width, ratio)]

    @property
    def _side(self) -> int:
        assert isinstance(self.size, int)
        return self.size


def render_part(
    image: NDArray[np.uint8], part: Box | None, view: View, resize: ResizeFilter
) -> NDArray[np.uint8]:
    """Return what a view shows of an image (H, W, 3): (height, width, 3) uint8.

    Where a ``part`` in whole pixels is given, the filter sees that part alone, as if it were an image; else it reaches
    over the border of the view where the image goes on.
    """
    if resize == "nearest":
        return _sample_nearest(image, view)
    left, top, right, bottom = view.box
    if part is not None:
        x0, y0, x1, y1 = map(int, part)
        image = image[y0:y1, x0:x1]
        left, top, right, bottom = left - x0, top - y0, right - x0, bottom - y0
    shown = Image.fromarray(image).resize(
        (view.width, view.height), _RESAMPLING[resize], box=_clipped((left, top, right, bottom), image.shape)
    )
    array = np.asarray(shown)
    return np.ascontiguousarray(array[:, ::-1]) if view.flip else array


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


def _sample_nearest(values: NDArray[Value], view: View) -> NDArray[Value]:
    columns = view.to_original(np.stack([np.arange(view.width) + 0.5, np.zeros(view.width)], axis=-1))[:, 0]
    rows = view.to_original(np.stack([np.zeros(view.height), np.arange(view.height) + 0.5], axis=-1))[:, 1]
    return values[np.ix_(_pixel_index(rows, values.shape[0]), _pixel_index(columns, values.shape[1]))]


def _pixel_index(positions: NDArray[np.float64], length: int) -> NDArray[np.int64]:
    return np.clip(np.floor(positions).astype(np.int64), 0, length - 1)


def _clipped(box: Box, shape: tuple[int, ...]) -> Box:
    """Take rounding errors off a box that touches the border."""
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], shape[1]), min(box[3], shape[0])
