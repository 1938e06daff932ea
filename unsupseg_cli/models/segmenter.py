"""The segmenter: the chain backbone -> feature heads -> class head, from images to class scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unsupseg_cli.models.backbone import WHOLE, Backbone, Box
from unsupseg_cli.models.heads import ClassHead, build_head


@dataclass
class ScoreMap:
    """Class scores on the token grid of one image, before interpolation.

    ``scores`` (K, h, w) are linear in the features, ``norm`` (h, w) is the features' length.
    """

    scores: Tensor
    norm: Tensor


class Segmenter(nn.Module):
    """A frozen backbone, feature heads and a class head.

    Args:
        backbone: gives tokens (B, h, w, C).
        feature_heads: descriptions of the heads between tokens and codes, in order.
        class_head: description of the class head.
        tensors: their weights, named ``feature_heads.<i>.*`` and ``class_head.*``.
        class_of: the class that each output of the class head stands for, where outputs were merged.
    """

    def __init__(
        self,
        backbone: Backbone,
        feature_heads: Sequence[dict[str, Any]],
        class_head: dict[str, Any],
        tensors: dict[str, Tensor],
        class_of: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.class_of = None if class_of is None else torch.tensor(class_of)
        self._outputs_of = [
            [output for output, target in enumerate(class_of or ()) if target == number]
            for number in range(max(class_of or (), default=-1) + 1)
        ]
        self.feature_heads = nn.ModuleList(build_head(head) for head in feature_heads)
        self.class_head = build_head(class_head)
        weights = {name: value.float() for name, value in tensors.items()}
        for prefix, part in (("feature_heads.", self.feature_heads), ("class_head.", self.class_head)):
            part.load_state_dict(
                {
                    name.removeprefix(prefix): value
                    for name, value in weights.items()
                    if name.startswith(prefix)
                }
            )
        self.eval()

    @property
    def head(self) -> ClassHead:
        """The class head."""
        assert isinstance(self.class_head, ClassHead)
        return self.class_head

    @torch.inference_mode()
    def codes(self, images: NDArray[np.uint8] | Tensor, flip: bool = False, box: Box = WHOLE) -> Tensor:
        """Return codes (B, h, w, D) of uint8 images (B, H, W, 3), sides multiples of the patch size.

        With ``flip`` the codes of the image and of its mirror image are averaged (STEGO, evaluation). ``box`` says
        which part of an image is given.
        """
        device = next(self.class_head.parameters()).device
        batch = self.backbone.normalise(torch.as_tensor(images).to(device, non_blocking=True))
        codes = self.encode(batch, box)
        if flip:
            left, top, right, bottom = box  # what is mirrored runs from right to left
            codes = (codes + self.encode(batch.flip(-1), (right, top, left, bottom)).flip(2)) / 2
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
        """Return the score maps of uint8 images (B, H, W, 3) that show ``box`` of an image."""
        return self.score_codes(self.codes(images, flip, box))

    @torch.inference_mode()
    def score_codes(self, codes: Tensor) -> list[ScoreMap]:
        """Return the score maps of codes (B, h, w, D)."""
        scores = self.head.scores(codes).movedim(-1, 1).cpu()
        return [ScoreMap(s, n) for s, n in zip(scores, codes.norm(dim=-1).cpu(), strict=True)]

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

        ``tile`` is in pixels and is rounded down to whole patches; memory holds one tile and the score map.
        """
        patch = self.backbone.patch_size
        h, w = image.shape[0] // patch, image.shape[1] // patch
        side = max(1, tile // patch)
        scores = norm = weights = None
        for top, bottom in _spans(h, side, overlap):
            for left, right in _spans(w, side, overlap):
                window = image[top * patch : bottom * patch, left * patch : right * patch]
                part_box = _part_box(box, (left / w, top / h, right / w, bottom / h))
                part = self.score(np.ascontiguousarray(window)[None], flip, part_box)[0]
                if scores is None or norm is None or weights is None:
                    scores = torch.zeros(part.scores.shape[0], h, w)
                    norm, weights = torch.zeros(h, w), torch.zeros(h, w)
                weight = _window_weights(bottom - top, right - left)
                scores[:, top:bottom, left:right] += part.scores * weight
                norm[top:bottom, left:right] += part.norm * weight
                weights[top:bottom, left:right] += weight
        assert scores is not None
        assert norm is not None
        assert weights is not None
        return ScoreMap(scores / weights, norm / weights)

    @torch.inference_mode()
    def log_probs(self, score_map: ScoreMap, height: int, width: int) -> Tensor:
        """Return log-probabilities (K, height, width), interpolated bilinearly."""
        scores = _resize(score_map.scores[None], height, width)[0]
        norm = _resize(score_map.norm[None, None], height, width)[0, 0]
        return self._merged(self.head.log_probs(scores.movedim(0, -1), norm).movedim(-1, 0))

    @torch.inference_mode()
    def labels(self, score_map: ScoreMap, height: int, width: int) -> NDArray[np.int16]:
        """Return the class of every pixel (height, width), in bands so that memory stays bounded."""
        out = np.empty((height, width), np.int16)
        for first, last, band in _bands(score_map.scores, height, width):
            best = band.argmax(0)
            out[first:last] = (best if self.class_of is None else self.class_of[best]).to(torch.int16).numpy()
        return out

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


def _resize(maps: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)


def _bands(scores: Tensor, height: int, width: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (first row, last row, scores of these rows), equal to interpolating everything at once."""
    classes, h, _ = scores.shape
    rows = max(1, _BAND_CELLS // max(1, classes * width))
    if rows >= height:
        yield 0, height, _resize(scores[None], height, width)[0]
        return
    wide = F.interpolate(scores[None], size=(h, width), mode="bilinear", align_corners=False)[0]
    for first in range(0, height, rows):
        last = min(first + rows, height)
        centre = ((torch.arange(first, last) + 0.5) * (h / height) - 0.5).clamp(0, h - 1)
        low = centre.floor().long()
        share = (centre - low).view(1, -1, 1)
        yield first, last, torch.lerp(wide[:, low], wide[:, (low + 1).clamp_max(h - 1)], share)


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
