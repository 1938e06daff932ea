"""The linear model: the chain backbone -> feature heads -> class head, whose scores are linear in the codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.models.backbone import WHOLE, Backbone, Box, mirrored
from unsupseg_cli.models.dense import DenseModel, ScoreMap
from unsupseg_cli.models.heads import build_class_head, build_head, load_part
from unsupseg_cli.models.memory import TOKEN_BUDGET


class LinearModel(DenseModel):
    """A frozen backbone, feature heads and a class head.

    Args:
        backbone: gives tokens (B, h, w, C).
        feature_heads: descriptions of the heads between tokens and codes, in order.
        class_head: description of the class head.
        tensors: their weights, named ``feature_heads.<i>.*`` and ``class_head.*``.
        class_of: the class that each output of the class head stands for, where outputs were merged.
    """

    backbone: Backbone

    def __init__(
        self,
        backbone: Backbone,
        feature_heads: Sequence[dict[str, Any]],
        class_head: dict[str, Any],
        tensors: dict[str, Tensor],
        class_of: Sequence[int] | None = None,
    ) -> None:
        head = build_class_head(class_head)
        super().__init__(
            backbone.name,
            outputs=len(head.weight),
            multiple=backbone.patch_size,
            stride=backbone.patch_size,
            most_pixels=TOKEN_BUDGET * backbone.patch_size**2,
            backbone=backbone,
            class_of=class_of,
        )
        self.placed = bool(backbone.position)
        self.feature_heads = nn.ModuleList(build_head(description) for description in feature_heads)
        self.class_head = head
        load_part(self.feature_heads, tensors, "feature_heads.")
        load_part(self.class_head, tensors, "class_head.")
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the class head lies."""
        return self.class_head.weight.device

    @torch.inference_mode()
    def codes(self, images: NDArray[np.uint8] | Tensor, flip: bool = False, box: Box = WHOLE) -> Tensor:
        """Return codes (B, h, w, D) of uint8 images (B, H, W, 3), sides multiples of the patch size.

        With ``flip`` the codes of the image and of its mirror image are averaged (STEGO, evaluation). ``box`` says
        which part of an image is given.
        """
        given = images if isinstance(images, Tensor) else torch.tensor(images)  # may be read-only
        batch = self.backbone.normalise(given.to(self.device, non_blocking=True))
        codes = self.encode(batch, box)
        if flip:
            codes = (codes + self.encode(batch.flip(-1), mirrored(box)).flip(2)) / 2
        return codes

    @torch.inference_mode()
    def encode(self, batch: Tensor, box: Box = WHOLE) -> Tensor:
        """Return codes (B, h, w, D) of normalised images (B, 3, H, W) that show ``box`` of an image."""
        codes: Tensor = self.backbone(batch, keep=("patch",), box=box)["patch"].float()
        for head in self.feature_heads:
            codes = head(codes)
        return codes

    @torch.inference_mode()
    def score(self, images: NDArray[np.uint8], flip: bool = False, box: Box = WHOLE) -> list[ScoreMap]:
        """Return the score maps of uint8 images (B, H, W, 3) that show ``box`` of an image; flips average codes."""
        codes = self.codes(images, flip, box)
        if not bool(torch.isfinite(codes.sum())):  # one pass, and one number to copy
            raise UnsupsegError(
                f"The model on '{self.name}' gave NaN or infinite codes; try --precision fp32, or train it again."
            )
        maps = self.score_codes(codes)
        return [replace(scores, codes=own) for scores, own in zip(maps, codes[:, None], strict=True)]

    @torch.inference_mode()
    def score_pixels(self, images: Tensor, box: Box = WHOLE) -> list[ScoreMap]:
        """Return the score maps of images (B, H, W, 3), values 0 to 255, that show ``box`` of an image."""
        return self.score_codes(self.encode(self.backbone.normalise(images), box))

    @torch.inference_mode()
    def score_codes(self, codes: Tensor) -> list[ScoreMap]:
        """Return the score maps of codes (B, h, w, D)."""
        scores = self.class_head.scores(codes).movedim(-1, 1).cpu()
        return [ScoreMap(s, n) for s, n in zip(scores, codes.norm(dim=-1).cpu(), strict=True)]

    def log_softmax(self, scores: Tensor, norm: Tensor | None) -> Tensor:
        """Return the class head's log-probabilities (K, ...)."""
        assert norm is not None
        return self.class_head.log_probs(scores.movedim(0, -1), norm).movedim(-1, 0)

    def to_average(self, score_map: ScoreMap) -> Tensor:
        """Return scores and length, (K + 1, h, w): the scores of averaged codes are the average of their scores."""
        assert score_map.norm is not None
        return torch.cat([score_map.scores, score_map.norm[None]])

    def from_average(self, average: Tensor) -> ScoreMap:
        """Return the score map of averaged scores and lengths (K + 1, h, w)."""
        return ScoreMap(average[:-1], average[-1])
