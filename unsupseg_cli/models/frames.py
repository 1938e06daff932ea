"""A segmenter for frames of one size as one graph: resizing, backbone, heads and label map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.models.segmenter import ScoreMap, Segmenter


class FrameSegmenter(nn.Module):
    """What `predict` does to one image that is not tiled, with every size known beforehand.

    Args:
        segmenter: the chain, on the CPU in float32.
        rows: weights (h, H) that resize the rows of a frame.
        columns: weights (w, W) that resize its columns.
    """

    def __init__(self, segmenter: Segmenter, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class of every pixel and log-probabilities on the token grid.

        Args:
            frame: uint8 RGB, (1, H, W, 3).

        Returns:
            Classes (1, H, W) int32, and log-probabilities (1, K, h, w).
        """
        pixels = frame.movedim(-1, 1).float()
        view = _round_to_bytes(self.rows @ _round_to_bytes(pixels @ self.columns.T))
        backbone = self.segmenter.backbone
        codes = self.segmenter.encode(backbone.normalise(view.movedim(1, -1)))
        (score_map,) = self.segmenter.score_codes(codes)
        size = (self.rows.shape[1], self.columns.shape[1])
        scores = F.interpolate(score_map.scores[None], size=size, mode="bilinear", align_corners=False)
        best = scores.argmax(1)
        if self.segmenter.class_of is not None:
            best = self.segmenter.class_of[best]
        return best.to(torch.int32), self._log_probs(score_map)[None]

    def _log_probs(self, score_map: ScoreMap) -> Tensor:
        height, width = score_map.norm.shape
        return self.segmenter.log_probs(score_map, height, width)


def _round_to_bytes(pixels: Tensor) -> Tensor:
    """Round to the whole values that 8 bits hold."""
    return (pixels + 0.5).floor().clamp(0, 255)
