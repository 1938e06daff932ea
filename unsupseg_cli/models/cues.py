"""What a network reads of cells beside tokens, their places and colours, and tokens on a finer grid by both."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WAVES = 4
"""Frequencies of the sine and cosine of each coordinate, octaves from half a period over the image; ours."""
SHARPNESS = (3.0, 50.0)
"""Of the interpolation, ours: about the width of a bilinear one, and a tenth of Lab's range (learnt, they stayed)."""
APPEARANCE = 7
"""Numbers that `appearance` gives of a cell."""


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


@torch.no_grad()
def enlarge(
    tokens: Tensor, colours: Tensor, times: int, sharpness: tuple[float, float] = SHARPNESS
) -> Tensor:
    """Return tokens on a finer grid (B, C, times h, times w): means of the nine nearest, by place and colour.

    Tokens are frozen, so that nothing here has a gradient. Source: joint bilateral upsampling (Kopf, Cohen, Lischinski,
    Uyttendaele: SIGGRAPH 2007).

    Args:
        tokens: (B, C, h, w).
        colours: of the cells of the fine grid, (B, 3, times h, times w).
        times: cells of the fine grid along the side of one.
        sharpness: what squared distances of place, in patches, and of colour, in Lab over 100, are multiplied by.
    """
    height, width = tokens.shape[2:]
    inside = (torch.arange(times, device=tokens.device) + 0.5) / times - 0.5  # of a cell in its patch
    down, across = inside.repeat(height)[:, None], inside.repeat(width)[None, :]
    around = F.pad(tokens, (1, 1, 1, 1), mode="replicate")
    around_colours = F.pad(F.avg_pool2d(colours, times), (1, 1, 1, 1), mode="replicate")
    steps = [(row, column) for row in range(3) for column in range(3)]

    def shifted(maps: Tensor, row: int, column: int) -> Tensor:
        part = maps[:, :, row : row + height, column : column + width]
        return part.repeat_interleave(times, 2).repeat_interleave(times, 3)

    distances = []
    for row, column in steps:
        place = (row - 1 - down).square() + (column - 1 - across).square()
        colour = (colours - shifted(around_colours, row, column)).square().sum(1)
        distances.append(sharpness[0] * place + sharpness[1] * colour)
    weights = (-torch.stack(distances, 1)).softmax(1)
    total = torch.zeros_like(tokens).repeat_interleave(times, 2).repeat_interleave(times, 3)
    for number, (row, column) in enumerate(steps):
        total = total + weights[:, number : number + 1] * shifted(around, row, column)
    return total
