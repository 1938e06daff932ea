"""The context-aware embedding (CAE) of cells, compared with the centroids of the classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.methods.context.config import FINE
from unsupseg_cli.models.heads import DenseNetwork, register_head

WAVES = 4
"""Frequencies of the sine and cosine of each coordinate, octaves from half a period over the image; ours."""
_NEIGHBOURS = 5  # cells on a side that the embedding of a cell is mixed from; ours
SHARPNESS = (3.0, 50.0)
"""Of the interpolation, ours: about the width of a bilinear one, and a tenth of Lab's range (learnt, they stayed)."""
_PLACE, _APPEARANCE = 4 * WAVES, 7


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
            self.of_place = nn.Conv2d(_PLACE, width, 1, bias=False)
            self.of_appearance = nn.Conv2d(_APPEARANCE, width, 1, bias=False)
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
            token = enlarge(token, looks[:, :3])
            hidden = F.interpolate(hidden, scale_factor=FINE, mode="bilinear", align_corners=False)
            hidden = hidden + context + self.of_place(place) + self.of_appearance(looks)
            hidden = self.mix(F.gelu(hidden))
        return F.normalize(token + self.out(F.gelu(hidden)), dim=1)

    def _colours(self, pixels: Tensor) -> Tensor:
        """Return normalised pixels as red, green and blue from 0 to 1."""
        mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels * std + mean).clamp(0, 1)


@torch.no_grad()
def enlarge(tokens: Tensor, colours: Tensor, sharpness: tuple[float, float] = SHARPNESS) -> Tensor:
    """Return tokens on the fine grid (B, C, FINE h, FINE w): means of the nine nearest, by place and colour.

    Tokens are frozen, so that nothing here has a gradient. Source: joint bilateral upsampling (Kopf, Cohen, Lischinski,
    Uyttendaele: SIGGRAPH 2007).

    Args:
        tokens: (B, C, h, w).
        colours: of the cells of the fine grid, (B, 3, FINE h, FINE w).
        sharpness: what squared distances of place, in patches, and of colour, in Lab over 100, are multiplied by.
    """
    height, width = tokens.shape[2:]
    inside = (torch.arange(FINE, device=tokens.device) + 0.5) / FINE - 0.5  # of a cell in its patch
    down, across = inside.repeat(height)[:, None], inside.repeat(width)[None, :]
    around = F.pad(tokens, (1, 1, 1, 1), mode="replicate")
    around_colours = F.pad(F.avg_pool2d(colours, FINE), (1, 1, 1, 1), mode="replicate")
    steps = [(row, column) for row in range(3) for column in range(3)]

    def shifted(maps: Tensor, row: int, column: int) -> Tensor:
        part = maps[:, :, row : row + height, column : column + width]
        return part.repeat_interleave(FINE, 2).repeat_interleave(FINE, 3)

    distances = []
    for row, column in steps:
        place = (row - 1 - down).square() + (column - 1 - across).square()
        colour = (colours - shifted(around_colours, row, column)).square().sum(1)
        distances.append(sharpness[0] * place + sharpness[1] * colour)
    weights = (-torch.stack(distances, 1)).softmax(1)
    total = torch.zeros_like(tokens).repeat_interleave(FINE, 2).repeat_interleave(FINE, 3)
    for number, (row, column) in enumerate(steps):
        total = total + weights[:, number : number + 1] * shifted(around, row, column)
    return total


def waves(place: Tensor) -> Tensor:
    """Return sines and cosines (B, 4 WAVES, h, w) of x and y (B, 2, h, w), from -1 to 1."""
    angles = torch.cat([place * (math.pi / 2 * 2**octave) for octave in range(WAVES)], 1)
    return torch.cat([angles.sin(), angles.cos()], 1)


def appearance(colours: Tensor, stride: int) -> Tensor:
    """Return mean and deviation of L, a and b, and the mean gradient of L, of cells (B, 7, H / stride, W / stride).

    Args:
        colours: red, green and blue from 0 to 1, (B, 3, H, W).
        stride: pixels of a cell's side.
    """
    lab = to_lab(colours)
    mean = F.avg_pool2d(lab, stride)
    deviation = (F.avg_pool2d(lab.square(), stride) - mean.square()).clamp_min(1e-6).sqrt()
    padded = F.pad(lab[:, :1], (1, 1, 1, 1), mode="replicate")
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    gradient = F.avg_pool2d((down.square() + across.square() + 1e-8).sqrt(), stride)
    return torch.cat([mean, deviation, gradient], 1)


def to_lab(colours: Tensor) -> Tensor:
    """Return L, a and b (B, 3, H, W) over 100 of sRGB from 0 to 1 (CIE 1976, white D65; IEC 61966-2-1)."""
    linear = torch.where(colours > 0.04045, ((colours + 0.055) / 1.055).pow(2.4), colours / 12.92)
    to_xyz = colours.new_tensor(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz / to_xyz.sum(1, keepdim=True), linear)
    root = torch.where(xyz > 0.008856, xyz.clamp_min(0.008856).pow(1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack([1.16 * y - 0.16, 5 * (x - y), 2 * (y - z)], 1)
