"""Crops of images, and of what is known of their cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.models.boxes import Box
from unsupseg_cli.models.operators import require_operators

require_operators()
from torchvision.ops import roi_align  # noqa: E402


@dataclass(frozen=True)
class CellCrop:
    """A crop of whole cells of a grid of patches, and whether it is mirrored.

    ``rows`` and ``columns`` begin at ``top`` and ``left``.
    """

    top: int
    left: int
    rows: int
    columns: int
    mirrored: bool

    def of(self, maps: Tensor, cells: int = 1) -> Tensor:
        """Return the crop of maps (..., h, w) of ``cells`` a patch's side."""
        rows = slice(self.top * cells, (self.top + self.rows) * cells)
        columns = slice(self.left * cells, (self.left + self.columns) * cells)
        return maps[..., rows, columns].flip(-1) if self.mirrored else maps[..., rows, columns]

    def box(self, grid: Sequence[int]) -> Box:
        """Return the crop as a box of the image, of the mirror image where it is mirrored.

        So a place does not tell the network that it sees a mirror image, for nothing will in use.
        """
        height, width = grid
        left = width - self.left - self.columns if self.mirrored else self.left
        return left / width, self.top / height, (left + self.columns) / width, (self.top + self.rows) / height


def whole(grid: Sequence[int], *, mirrored: bool = False) -> CellCrop:
    """Return the crop that is all of a grid."""
    return CellCrop(0, 0, int(grid[0]), int(grid[1]), mirrored)


@dataclass(frozen=True)
class Place:
    """What is shown of an image: where a crop begins, as a share of its room, and whether it is mirrored."""

    top: float
    left: float
    mirrored: bool


def crop_grid(tokens: Tensor, maps: Tensor, grid: tuple[int, int], place: Place) -> tuple[Tensor, Tensor]:
    """Return a crop, of whole cells, of tokens (h, w, C) and of maps (K, h, w).

    Args:
        tokens: of an image.
        maps: of its concepts.
        grid: rows and columns of the crop.
        place: where it is.
    """
    height, width = grid
    top = round(place.top * (tokens.shape[0] - height))
    left = round(place.left * (tokens.shape[1] - width))
    rows, columns = slice(top, top + height), slice(left, left + width)
    tokens, maps = tokens[rows, columns], maps[:, rows, columns]
    return (tokens.flip(1), maps.flip(2)) if place.mirrored else (tokens, maps)


def crop_image(pixels: Tensor, maps: Tensor, scale: float, side: int, place: Place) -> tuple[Tensor, Tensor]:
    """Return a square of an image, resized to ``side`` patches, and its maps (K, side, side).

    Args:
        pixels: (3, H, W).
        maps: (K, h, w) of its patches.
        scale: side of the square, as a share of the image's shorter side.
        side: in patches.
        place: where the square is.
    """
    patch = pixels.shape[1] // maps.shape[1]
    length = max(1, round(scale * min(pixels.shape[1:])))
    top = round(place.top * (pixels.shape[1] - length))
    left = round(place.left * (pixels.shape[2] - length))
    square = pixels[None, :, top : top + length, left : left + length]
    size = (side * patch, side * patch)
    shown = F.interpolate(square, size=size, mode="bilinear", align_corners=False)[0]
    box = maps.new_tensor([[left, top, left + length, top + length]]) / patch
    values = roi_align(maps[None], [box], (side, side), aligned=True)[0]
    return (shown.flip(2), values.flip(2)) if place.mirrored else (shown, values)
