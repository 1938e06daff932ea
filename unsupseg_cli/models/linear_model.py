"""The linear model: the chain backbone -> feature heads -> class head, whose scores are linear in the codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.models.backbone import Backbone
from unsupseg_cli.models.boxes import WHOLE, Box
from unsupseg_cli.models.dense import DenseModel, Look, ScoreMap
from unsupseg_cli.models.heads import build_class_head, build_head, load_part
from unsupseg_cli.models.memory import TOKEN_BUDGET


class LinearModel(DenseModel):
    """A frozen backbone, feature heads and a class head.

    Args:
        backbone: gives tokens (B, h, w, C); None where they are stored ones.
        feature_heads: descriptions of the heads between tokens and codes, in order.
        class_head: description of the class head.
        tensors: their weights, named ``feature_heads.<i>.*`` and ``class_head.*``.
        class_of: the class that each output of the class head stands for, where outputs were merged.
        patch: pixels of a stored token's side.
    """

    def __init__(
        self,
        backbone: Backbone | None,
        feature_heads: Sequence[dict[str, Any]],
        class_head: dict[str, Any],
        tensors: dict[str, Tensor],
        class_of: Sequence[int] | None = None,
        patch: int | None = None,
    ) -> None:
        head = build_class_head(class_head)
        side = patch or (backbone.patch_size if backbone else 1)
        super().__init__(
            backbone.name if backbone else "stored tokens",
            outputs=len(head.weight),
            multiple=side,
            stride=side,
            most_pixels=TOKEN_BUDGET * side**2,
            backbone=backbone,
            class_of=class_of,
        )
        self.placed = bool(backbone and backbone.position)
        self.feature_heads = nn.ModuleList(build_head(description) for description in feature_heads)
        self.class_head = head
        load_part(self.feature_heads, tensors, "feature_heads.")
        load_part(self.class_head, tensors, "class_head.")
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the class head lies."""
        return self.class_head.weight.device

    @property
    def reads(self) -> tuple[str, ...]:
        """The patch tokens."""
        return ("patch",)

    @torch.inference_mode()
    def look(self, images: Tensor, box: Box = WHOLE) -> Look:
        """Return the tokens of images (B, H, W, 3), values 0 to 255, that show ``box`` of an image."""
        assert self.backbone is not None
        batch = self.backbone.normalise(images.to(self.device, non_blocking=True))
        return Look(self.backbone(batch, keep=("patch",), box=box), *images.shape[1:3])

    @torch.inference_mode()
    def codes(self, tokens: Tensor) -> Tensor:
        """Return the codes (B, h, w, D) of patch tokens (B, h, w, C)."""
        codes = tokens.float()
        for head in self.feature_heads:
            codes = head(codes)
        return codes

    @torch.inference_mode()
    def score_look(self, look: Look, mirror: Look | None = None) -> list[ScoreMap]:
        """Return the score maps of a look at images; of mirror images the codes are averaged (STEGO, evaluation).

        Raises:
            UnsupsegError: the codes are not finite.
        """
        codes = self.codes(look.arrays["patch"])
        if mirror is not None:
            codes = (codes + self.codes(mirror.arrays["patch"]).flip(2)) / 2
        if not bool(torch.isfinite(codes.sum())):  # one pass, and one number to copy
            raise UnsupsegError(
                f"The model on '{self.name}' gave NaN or infinite codes; try --precision fp32, or train it again."
            )
        maps = self.score_codes(codes)
        return [replace(scores, codes=own) for scores, own in zip(maps, codes[:, None], strict=True)]

    @torch.inference_mode()
    def score_pixels(self, images: Tensor, box: Box = WHOLE) -> list[ScoreMap]:
        """Return the score maps of images (B, H, W, 3), values 0 to 255, that show ``box`` of an image."""
        return self.score_codes(self.codes(self.look(images, box).arrays["patch"]))

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
