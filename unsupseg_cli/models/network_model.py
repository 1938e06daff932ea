"""The network model: a trained dense network over a backbone's tokens, an image's pixels, or both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from unsupseg_cli.core.errors import UnsupsegError, reason_of
from unsupseg_cli.models.backbone import DTYPES, Backbone
from unsupseg_cli.models.boxes import WHOLE, Box
from unsupseg_cli.models.dense import DenseModel, Look, ScoreMap
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
        backbone: gives the arrays that the network reads of one; None where it reads the image only, or where they are
            stored ones.
        feature_heads: descriptions of the heads that the patch tokens go through first, in order.
        class_of: the class that each output stands for, where outputs were merged.
        precision: arithmetic of a network without a backbone; above one it is float32.
        patch: pixels of a stored token's side.
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
        patch: int | None = None,
    ) -> None:
        built = build_network(network)
        side = patch or (backbone.patch_size if backbone else 1)
        multiple, stride = built.grid(side)
        super().__init__(
            str(network["type"]),
            outputs=int(network["classes"]),
            multiple=multiple,
            stride=stride,
            most_pixels=TOKEN_BUDGET * side**2 if built.reads_tokens else _MOST_PIXELS,
            backbone=backbone,
            class_of=class_of,
        )
        self.network, self.dtype = built, torch.float32 if built.reads_tokens else DTYPES[precision]
        self.placed = "place" in built.reads or bool(backbone and backbone.position)
        self.feature_heads = nn.ModuleList(build_head(description) for description in feature_heads)
        load_part(self.feature_heads, tensors, "feature_heads.")
        load_part(self.network, tensors, "network.")
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(chain(self.parameters(), self.buffers()), torch.empty(0)).device

    @property
    def reads(self) -> tuple[str, ...]:
        """The arrays of the backbone and of the image that the network reads."""
        return self.network.reads

    def image_arrays(self, images: Tensor, box: Box = WHOLE) -> dict[str, Tensor]:
        """Return what the network reads of images (B, H, W, 3), values 0 to 255, themselves."""
        return self.network.image_arrays(images, box)

    @torch.inference_mode()
    def look(self, images: Tensor, box: Box = WHOLE) -> Look:
        """Return what the network reads of images (B, H, W, 3), values 0 to 255, that show ``box`` of an image."""
        images = images.to(self.device)
        arrays = self.image_arrays(images, box)
        if self.backbone is not None:
            keep = [name for name in self.reads if name in TOKEN_ARRAYS]
            arrays |= self.backbone(self.backbone.normalise(images), keep=keep, box=box)
        return Look(arrays, *images.shape[1:3])

    @torch.inference_mode()
    def score_look(self, look: Look, mirror: Look | None = None) -> list[ScoreMap]:
        """Return the score maps of a look at images; of mirror images the probabilities are averaged.

        Raises:
            UnsupsegError: the network gave scores of another shape than it says, or NaN or infinite ones.
        """
        log_probs = self._log_probs(look)
        if mirror is not None:
            log_probs = torch.logaddexp(log_probs, self._log_probs(mirror).flip(-1)) - math.log(2)
        if not bool(torch.isfinite(log_probs).all()):
            raise UnsupsegError(
                f"The network '{self.name}' gave NaN or infinite scores; try --precision fp32, or train it again."
            )
        return [ScoreMap(scores) for scores in log_probs.cpu()]

    @torch.inference_mode()
    def score_pixels(self, images: Tensor, box: Box = WHOLE) -> list[ScoreMap]:
        """Return the score maps of images (B, H, W, 3), values 0 to 255, that show ``box`` of an image."""
        return [ScoreMap(scores) for scores in self._log_probs(self.look(images, box))]

    def _log_probs(self, look: Look) -> Tensor:
        """Return log-probabilities (B, K, h, w) of a look at images."""
        arrays, height, width = dict(look.arrays), look.height, look.width
        if "patch" in arrays:
            arrays["patch"] = arrays["patch"].float()
            for head in self.feature_heads:
                arrays["patch"] = head(arrays["patch"])
        batch = len(next(iter(arrays.values())))
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

    def log_softmax(self, scores: Tensor, norm: Tensor | None) -> Tensor:
        """Return log-probabilities (K, ...)."""
        return scores.log_softmax(0)

    def to_average(self, score_map: ScoreMap) -> Tensor:
        """Return probabilities, (K, h, w)."""
        return score_map.scores.exp()

    def from_average(self, average: Tensor) -> ScoreMap:
        """Return the score map of averaged probabilities (K, h, w)."""
        return ScoreMap(average.clamp_min(torch.finfo(average.dtype).tiny).log())
