"""The network model: a trained dense network over a backbone's tokens, an image's pixels, or both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unsupseg_cli.core.errors import UnsupsegError, reason_of
from unsupseg_cli.models.backbone import DTYPES, WHOLE, Backbone, Box, mirrored
from unsupseg_cli.models.dense import DenseModel, ScoreMap
from unsupseg_cli.models.heads import TOKEN_ARRAYS, build_head, build_network, load_part
from unsupseg_cli.models.memory import TOKEN_BUDGET, is_out_of_memory

_MOST_PIXELS = (
    2**21
)  # of a network without a backbone: 1448 x 1448, as many as the budget of tokens at patch 16


class NetworkModel(DenseModel):
    """A dense network, with or without a frozen backbone below.

    Scores are log-probabilities. Several looks at a cell (the mirror image, tiles) average probabilities, as DeepLab
    does with flips and scales (Chen et al., arXiv 1706.05587): what tokens or pixels say to each other is of one look.

    Args:
        network: its description, ``{"type": NAME, "classes": K, ...fields}``.
        tensors: weights, named ``network.*`` and ``feature_heads.<i>.*``.
        backbone: gives the arrays that the network reads of one; None where it reads the image only.
        feature_heads: descriptions of the heads that the patch tokens go through first, in order.
        class_of: the class that each output stands for, where outputs were merged.
        precision: arithmetic of a network without a backbone; above one it is float32.
    """

    def __init__(
        self,
        network: dict[str, Any],
        tensors: dict[str, Tensor],
        *,
        backbone: Backbone | None = None,
        feature_heads: Sequence[dict[str, Any]] = (),
        class_of: Sequence[int] | None = None,
        precision: str = "fp32",
    ) -> None:
        built = build_network(network)
        patch = backbone.patch_size if backbone else 1
        multiple, stride = built.grid(patch)
        super().__init__(
            str(network["type"]),
            outputs=int(network["classes"]),
            multiple=multiple,
            stride=stride,
            most_pixels=TOKEN_BUDGET * patch**2 if backbone else _MOST_PIXELS,
            backbone=backbone,
            class_of=class_of,
        )
        self.network, self.dtype = built, torch.float32 if backbone else DTYPES[precision]
        self.placed = "place" in built.reads or bool(backbone and backbone.position)
        self.feature_heads = nn.ModuleList(build_head(description) for description in feature_heads)
        load_part(self.feature_heads, tensors, "feature_heads.")
        load_part(self.network, tensors, "network.")
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(chain(self.parameters(), self.buffers()), torch.empty(0)).device

    @torch.inference_mode()
    def score(self, images: NDArray[np.uint8], flip: bool = False, box: Box = WHOLE) -> list[ScoreMap]:
        """Return the score maps of uint8 images (B, H, W, 3) that show ``box``; flips average probabilities.

        Raises:
            UnsupsegError: the network gave scores of another shape than it says, or NaN or infinite ones.
        """
        batch = torch.tensor(images, device=self.device)
        log_probs = self._log_probs(batch, box)
        if flip:
            mirror = self._log_probs(batch.flip(2), mirrored(box)).flip(-1)
            log_probs = torch.logaddexp(log_probs, mirror) - math.log(2)
        if not bool(torch.isfinite(log_probs).all()):
            raise UnsupsegError(
                f"The network '{self.name}' gave NaN or infinite scores; try --precision fp32, or train it again."
            )
        return [ScoreMap(scores) for scores in log_probs.cpu()]

    @torch.inference_mode()
    def score_pixels(self, images: Tensor, box: Box = WHOLE) -> list[ScoreMap]:
        """Return the score maps of images (B, H, W, 3), values 0 to 255, that show ``box`` of an image."""
        return [ScoreMap(scores) for scores in self._log_probs(images, box)]

    def _log_probs(self, images: Tensor, box: Box) -> Tensor:
        """Return log-probabilities (B, K, h, w) of images (B, H, W, 3), values 0 to 255."""
        batch, height, width, _ = images.shape
        arrays = self._arrays(images, box)
        try:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                scores: Tensor = self.network(arrays)
        except Exception as error:  # the network of a foreign package may fail in any way
            if is_out_of_memory(error):
                raise
            raise UnsupsegError(
                f"The network '{self.name}' failed on images of {height}x{width} pixels ({type(error).__name__}: "
                f"{reason_of(error)}): an error of its package, whose place -v prints."
            ) from error
        expected = (batch, self.outputs, height // self.stride, width // self.stride)
        if tuple(scores.shape) != expected:
            raise UnsupsegError(
                f"The network '{self.name}' gave scores of shape {tuple(scores.shape)} for images of {height}x{width} "
                f"pixels, expected {expected}: {self.outputs} classes, cells of {self.stride} pixels; mend its package."
            )
        return scores.float().log_softmax(1)

    def _arrays(self, images: Tensor, box: Box) -> dict[str, Tensor]:
        """Return what the network reads of images (B, H, W, 3), values 0 to 255."""
        arrays = self.network.image_arrays(images, box)
        if self.backbone is not None:
            keep = [name for name in self.network.reads if name in TOKEN_ARRAYS]
            arrays |= self.backbone(self.backbone.normalise(images), keep=keep, box=box)
        if "patch" in arrays:
            arrays["patch"] = arrays["patch"].float()
            for head in self.feature_heads:
                arrays["patch"] = head(arrays["patch"])
        return arrays

    def log_softmax(self, scores: Tensor, norm: Tensor | None) -> Tensor:
        """Return log-probabilities (K, ...)."""
        return scores.log_softmax(0)

    def to_average(self, score_map: ScoreMap) -> Tensor:
        """Return probabilities, (K, h, w)."""
        return score_map.scores.exp()

    def from_average(self, average: Tensor) -> ScoreMap:
        """Return the score map of averaged probabilities (K, h, w)."""
        return ScoreMap(average.clamp_min(torch.finfo(average.dtype).tiny).log())
