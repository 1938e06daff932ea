"""A dense model for frames of one size as one graph: resizing, network and label map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.models.dense import DenseModel, ScoreMap


class SizedSegmenter(nn.Module):
    """What `predict` does to one image that is not tiled, with every size known beforehand; kinds differ in form.

    Args:
        segmenter: the model, on the CPU in float32.
        rows: weights (h, H) that resize the rows of a frame.
        columns: weights (w, W) that resize its columns.
    """

    def __init__(self, segmenter: DenseModel, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.rows.shape[1], self.columns.shape[1]

    def score(self, pixels: Tensor) -> ScoreMap:
        """Return the score map of pixels (1, 3, H, W), values 0 to 255."""
        view = _round_to_bytes(self.rows @ _round_to_bytes(pixels @ self.columns.T))
        (score_map,) = self.segmenter.score_pixels(view.movedim(1, -1))
        return score_map


class FrameSegmenter(SizedSegmenter):
    """From a frame to its label map.

    Args:
        segmenter: see `SizedSegmenter`.
        rows: the same.
        columns: the same.
        ids: of the classes, in the order of the model's scores.
    """

    def __init__(self, segmenter: DenseModel, rows: Tensor, columns: Tensor, ids: Sequence[int]) -> None:
        super().__init__(segmenter, rows, columns)
        self.ids: Tensor
        self.register_buffer("ids", torch.tensor(ids, dtype=torch.int32), persistent=False)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class id of every pixel and log-probabilities of the model's cells.

        Args:
            frame: uint8 RGB, (1, H, W, 3).

        Returns:
            Ids (1, H, W) int32, and log-probabilities (1, K, h, w).
        """
        score_map, size = self.score(frame.movedim(-1, 1).float()), self.size
        scores = F.interpolate(score_map.scores[None], size=size, mode="bilinear", align_corners=False)
        best = self.segmenter.best(scores.argmax(1))
        height, width = score_map.scores.shape[-2:]
        return self.ids[best], self.segmenter.log_probs(score_map, height, width)[None]


class TileSegmenter(SizedSegmenter):
    """From channels first to one map for each class, as programs for maps expect."""

    def forward(self, image: Tensor) -> Tensor:
        """Return the probabilities (1, K, H, W) of the classes of RGB values (1, 3, H, W) in [0, 1]."""
        score_map = self.score(_round_to_bytes(image * 255))
        return self.segmenter.log_probs(score_map, *self.size)[None].exp()


def _round_to_bytes(pixels: Tensor) -> Tensor:
    """Round to the whole values that 8 bits hold."""
    return (pixels + 0.5).floor().clamp(0, 255)
