"""Dense models: images -> scores of classes for every cell, and from there to pixels of any size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unsupseg_cli.models.backbone import Backbone
from unsupseg_cli.models.boxes import WHOLE, Box, mirrored


@dataclass(frozen=True)
class Look:
    """What a model reads of one look at images of a size (height, width): arrays of the backbone and of the images.

    `DenseModel.look` makes it of images; tokens may as well come from where `extract` stored them.
    """

    arrays: Mapping[str, Tensor]
    height: int
    width: int


@dataclass
class ScoreMap:
    """Scores (K, h, w) of one image's cells, which may be interpolated as they are.

    Of a linear model they are linear in the codes, with the codes' length ``norm`` (h, w) beside them, and ``codes``
    (1, h, w, D) are what they were made from, unless the image was tiled. Of another model they are log-probabilities.
    """

    scores: Tensor
    norm: Tensor | None = None
    codes: Tensor | None = None


class DenseModel(nn.Module, ABC):
    """Images -> scores of K outputs, of which some may stand for one class.

    Args:
        name: what messages call the network by.
        outputs: the scores of a cell, K.
        multiple: the sides of an image are multiples of it, in pixels.
        stride: pixels of a cell's side, a divisor of ``multiple``.
        most_pixels: of an image that goes through the network at once; larger ones are tiled.
        backbone: the frozen one that the model stands on, if it does, and if it looks at images itself.
        class_of: the class that each output stands for, where outputs were merged.

    ``placed`` says that scores depend on which part of an image is shown.

    A `LinearModel` is the fast case: its looks at a cell are averaged, and its codes stored, before any softmax. A
    `NetworkModel` is any other.
    """

    placed = False

    def __init__(
        self,
        name: str,
        *,
        outputs: int,
        multiple: int,
        stride: int,
        most_pixels: int,
        backbone: Backbone | None = None,
        class_of: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.outputs, self.multiple, self.stride = name, outputs, multiple, stride
        self.most_pixels, self.backbone = most_pixels, backbone
        self.class_of = None if class_of is None else torch.tensor(class_of)
        self._outputs_of = [
            [output for output, target in enumerate(class_of or ()) if target == number]
            for number in range(max(class_of or (), default=-1) + 1)
        ]

    # What a kind of model says ---------------------------------------------------------------------------

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the network lies."""

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """The arrays of a `Look` that scores are made from (`models.heads`)."""

    def image_arrays(self, images: Tensor, box: Box = WHOLE) -> dict[str, Tensor]:
        """Return what is read of images (B, H, W, 3), values 0 to 255, themselves."""
        return {}

    @abstractmethod
    def look(self, images: Tensor, box: Box = WHOLE) -> Look:
        """Return what is read of images (B, H, W, 3), values 0 to 255, that show ``box`` of an image."""

    @abstractmethod
    def score_look(self, look: Look, mirror: Look | None = None) -> list[ScoreMap]:
        """Return the score maps of a look at images, averaged with one at their mirror images if it is given.

        Raises:
            UnsupsegError: the network gave something else than finite scores.
        """

    @abstractmethod
    def score_pixels(self, images: Tensor, box: Box = WHOLE) -> list[ScoreMap]:
        """Return the score maps of images (B, H, W, 3), values 0 to 255, that show ``box`` of an image.

        It can be traced into a graph.
        """

    @abstractmethod
    def log_softmax(self, scores: Tensor, norm: Tensor | None) -> Tensor:
        """Return log-probabilities (K, ...) of scores (K, ...), and of the codes' length (...) in a linear model."""

    @abstractmethod
    def to_average(self, score_map: ScoreMap) -> Tensor:
        """Return what of a score map may be averaged over several looks at a cell: (M, h, w)."""

    @abstractmethod
    def from_average(self, average: Tensor) -> ScoreMap:
        """Return the score map of what was averaged (M, h, w)."""

    # What holds for every kind ---------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, images: NDArray[np.uint8], flip: bool = False, box: Box = WHOLE) -> list[ScoreMap]:
        """Return the score maps of uint8 images (B, H, W, 3), sides multiples of ``multiple``.

        With ``flip`` the image and its mirror image are averaged. ``box`` says which part of an image is given.

        Raises:
            UnsupsegError: the network gave something else than finite scores.
        """
        batch = torch.tensor(images, device=self.device)  # images may be read-only
        mirror = self.look(batch.flip(2), mirrored(box)) if flip else None
        return self.score_look(self.look(batch, box), mirror)

    @torch.inference_mode()
    def score_tiled(
        self,
        image: NDArray[np.uint8],
        tile: int,
        overlap: float = 0.25,
        flip: bool = False,
        box: Box = WHOLE,
    ) -> ScoreMap:
        """Return the score map of a large image (H, W, 3), put together from tiles with smooth weights.

        ``tile`` is in pixels and is rounded down to multiples of ``multiple``; memory holds one tile and the score map.
        """
        unit, cells = self.multiple, self.multiple // self.stride
        h, w = image.shape[0] // unit, image.shape[1] // unit
        side = max(1, tile // unit)
        total, weights = None, torch.zeros(h * cells, w * cells)
        for top, bottom in _spans(h, side, overlap):
            for left, right in _spans(w, side, overlap):
                window = image[top * unit : bottom * unit, left * unit : right * unit]
                part_box = _part_box(box, (left / w, top / h, right / w, bottom / h))
                part = self.to_average(self.score(np.ascontiguousarray(window)[None], flip, part_box)[0])
                if total is None:
                    total = torch.zeros(len(part), h * cells, w * cells)
                weight = _window_weights((bottom - top) * cells, (right - left) * cells)
                place = slice(top * cells, bottom * cells), slice(left * cells, right * cells)
                total[:, *place] += part * weight
                weights[place] += weight
        assert total is not None
        return self.from_average(total / weights)

    @torch.inference_mode()
    def log_probs(self, score_map: ScoreMap, height: int, width: int) -> Tensor:
        """Return log-probabilities (K, height, width) of the classes, interpolated bilinearly."""
        return self._merged(self.output_log_probs(score_map, height, width))

    @torch.inference_mode()
    def output_log_probs(self, score_map: ScoreMap, height: int, width: int) -> Tensor:
        """Return log-probabilities (K, height, width) of the outputs, of which some may stand for one class."""
        scores = _enlarge(score_map.scores, height, width)
        norm = score_map.norm
        if norm is not None:
            norm = _enlarge(norm[None], height, width)[0]
        return self.log_softmax(scores, norm)

    @torch.inference_mode()
    def labels(self, score_map: ScoreMap, height: int, width: int) -> NDArray[np.int16]:
        """Return the class of every pixel (height, width), in bands so that memory stays bounded."""
        out = np.empty((height, width), np.int16)
        for first, last, band in _bands(score_map.scores, height, width):
            # The indices of `max` are those of `argmax`, which takes four times as long along the first axis.
            out[first:last] = self.best(band.max(0).indices).to(torch.int16).numpy()
        return out

    def best(self, outputs: Tensor) -> Tensor:
        """Return the classes that outputs stand for."""
        return outputs if self.class_of is None else self.class_of[outputs]

    def _merged(self, log_probs: Tensor) -> Tensor:
        """Return log-probabilities of the classes (K', h, w) from those of the outputs (K, h, w).

        Of outputs that were merged the most probable one counts, so that merging takes no pixel from another class.
        """
        if self.class_of is None:
            return log_probs
        return torch.stack([log_probs[group].amax(0) for group in self._outputs_of]).log_softmax(0)


def _part_box(box: Box, part: Box) -> Box:
    """Return the box in the image of a part of a box of it."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    return left + width * part[0], top + height * part[1], left + width * part[2], top + height * part[3]


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (B, K, h, w) at another size, bilinear."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _bands(scores: Tensor, height: int, width: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (first row, last row, scores of these rows), equal to interpolating everything at once."""
    classes, cells, _ = scores.shape
    rows = max(1, _BAND_CELLS // max(1, classes * width))
    if rows >= height:
        yield 0, height, _enlarge(scores, height, width)
        return
    wide = _enlarge(scores, cells, width)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        centre = ((torch.arange(first, last) + 0.5) * (cells / height) - 0.5).clamp(0, cells - 1)
        low = centre.floor().long()
        share = (centre - low).view(1, -1, 1)
        yield first, last, torch.lerp(wide[:, low], wide[:, (low + 1).clamp_max(cells - 1)], share)


def _enlarge(maps: Tensor, height: int, width: int) -> Tensor:
    """Return maps (K, h, w) at another size, bilinear, (K, height, width).

    On a CPU as two matrix products, which take a sixth (16 cells to 360 pixels) to nine tenths (73 to 1024) of the
    time of `F.interpolate`. A product would spread infinite scores over their row and column.
    """
    products = maps.device.type == "cpu" and maps.dtype == torch.float32 and not torch.compiler.is_compiling()
    if not (products and maps.isfinite().all()):
        return resize_maps(maps[None], (height, width))[0]
    _, rows, columns = maps.shape
    wide = maps if columns == width else maps @ _shares(columns, width)
    return wide if rows == height else _shares(rows, height).T @ wide


@lru_cache(maxsize=64)
def _shares(cells: int, pixels: int) -> Tensor:
    """Return how much of each pixel of a line each cell makes, (cells, pixels)."""
    return F.interpolate(torch.eye(cells)[None], size=pixels, mode="linear", align_corners=False)[0]


_BAND_CELLS = 64_000_000  # floats of one band: 256 MB


def _spans(length: int, side: int, overlap: float) -> list[tuple[int, int]]:
    """Return the [start, stop) of windows of ``side`` that cover ``length`` with at least ``overlap``."""
    if length <= side:
        return [(0, length)]
    step = max(1, int(side * (1 - overlap)))
    starts = [*range(0, length - side, step), length - side]
    return [(start, start + side) for start in starts]


def _window_weights(height: int, width: int) -> Tensor:
    """Return positive weights (height, width) that fall off smoothly towards the border."""

    def hann(n: int) -> Tensor:
        return torch.hann_window(n + 2, periodic=False)[1:-1]

    return hann(height)[:, None] * hann(width)[None, :]
