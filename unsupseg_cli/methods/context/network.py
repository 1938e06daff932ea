"""The context-aware embedding (CAE) of cells, compared with the centroids of the classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.methods.context.config import FINE
from unsupseg_cli.models.cues import APPEARANCE, WAVES, appearance, enlarge, waves
from unsupseg_cli.models.heads import DenseNetwork, register_head

_NEIGHBOURS = 5  # cells on a side that the embedding of a cell is mixed from; ours


@register_head("context")
class ContextNetwork(DenseNetwork):
    """Tokens, a global token, place and pixels -> scores (B, K, h, w): cosines of embeddings to centroids, scaled.

    The embedding is the token, brought to the fine grid along edges, and what a small network adds to it. At first that
    is nothing: a network that was not trained gives each cell its nearest centroid.

    Args:
        classes: number of classes K.
        dim: channels C of a token, and of an embedding.
        scale: of the cosines.
        width: hidden channels.
        stride: pixels of a cell's side, half a patch; None: no CAE, embeddings of patches from patches alone.
    """

    def __init__(
        self, classes: int, dim: int, scale: float = 1.0, width: int = 128, stride: int | None = None
    ) -> None:
        super().__init__()
        self.scale, self.stride, self.fine = scale, stride, FINE if stride else 1
        self.reads = ("patch", "cls", "pixels", "place") if stride else ("patch",)
        self.norm, self.of_patch = nn.LayerNorm(dim), nn.Linear(dim, width)
        if stride:
            self.global_norm, self.of_global = nn.LayerNorm(dim), nn.Linear(dim, width, bias=False)
            self.of_place = nn.Conv2d(4 * WAVES, width, 1, bias=False)
            self.of_appearance = nn.Conv2d(APPEARANCE, width, 1, bias=False)
            self.mix = nn.Conv2d(
                width, width, _NEIGHBOURS, padding=_NEIGHBOURS // 2, padding_mode="replicate", groups=width
            )
        self.out = nn.Conv2d(width, dim, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)
        self.centroids: Tensor
        self.register_buffer("centroids", F.normalize(torch.randn(classes, dim), dim=-1))

    def forward(self, arrays: dict[str, Tensor]) -> Tensor:
        """Return scores (B, K, H / stride, W / stride)."""
        return self.scores(self.embed(arrays))

    def scores(self, embeddings: Tensor) -> Tensor:
        """Return scores (B, K, h, w) of embeddings (B, C, h, w)."""
        return self.scale * torch.einsum("bchw,kc->bkhw", embeddings, self.centroids)

    def embed(self, arrays: dict[str, Tensor]) -> Tensor:
        """Return embeddings (B, C, h, w) of length 1."""
        patch = arrays["patch"]
        token = F.normalize(patch, dim=-1).movedim(-1, 1)
        hidden = self.of_patch(self.norm(patch)).movedim(-1, 1)
        if self.stride:
            context = self.of_global(self.global_norm(arrays["cls"]))[:, :, None, None]
            place = waves(F.avg_pool2d(arrays["place"], self.stride))
            looks = appearance(self._colours(arrays["pixels"]), self.stride)
            token = enlarge(token, looks[:, :3], FINE)
            hidden = F.interpolate(hidden, scale_factor=FINE, mode="bilinear", align_corners=False)
            hidden = hidden + context + self.of_place(place) + self.of_appearance(looks)
            hidden = self.mix(F.gelu(hidden))
        return F.normalize(token + self.out(F.gelu(hidden)), dim=1)

    def _colours(self, pixels: Tensor) -> Tensor:
        """Return normalised pixels as red, green and blue from 0 to 1."""
        mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels * std + mean).clamp(0, 1)
