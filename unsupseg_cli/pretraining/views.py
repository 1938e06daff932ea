"""Random views of a batch of images, made with batched tensor operations, and where they overlap.

Images come as a square uint8 batch: each image squashed to S x S, with its true aspect ratio beside it, so
that a whole corpus is one array. Crops are sampled from it with bilinear interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.models.vit import MEAN, STD

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Colours:
    """How the colours of B images are changed, each (B,1,1,1): factors, an angle in radians, and whether at all."""

    brightness: Tensor
    contrast: Tensor
    hue: Tensor
    saturation: Tensor
    jittered: Tensor
    grey: Tensor
    blurred: Tensor

    def of(self, places: Sequence[int]) -> Colours:
        """Return those of some of the images, in this order."""
        return Colours(*(value[list(places)] for value in vars(self).values()))


@dataclass(frozen=True)
class Crops:
    """One crop of each of B images: box (B,4) x0,y0,x1,y1 in [0,1], flip (B,) bool, and its colours."""

    box: Tensor
    flip: Tensor
    colours: Colours

    def of(self, places: Sequence[int]) -> Crops:
        """Return those of some of the images, in this order."""
        chosen = list(places)
        return Crops(self.box[chosen], self.flip[chosen], self.colours.of(chosen))


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def random_boxes(aspect: Tensor, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Return random boxes (B,4) in [0,1] whose area and pixel aspect ratio (3/4 to 4/3) are random.

    Source: Inception-style crops as in SimCLR, App. A. ``aspect`` (B,) is width / height of each image.
    """
    n = len(aspect)
    area = _uniform((n,), *scale, generator)
    ratio = torch.exp(_uniform((n,), math.log(3 / 4), math.log(4 / 3), generator))
    width = (area * ratio / aspect).sqrt().clamp(max=1.0)
    height = (area * aspect / ratio).sqrt().clamp(max=1.0)
    x0 = torch.rand(n, generator=generator) * (1 - width)
    y0 = torch.rand(n, generator=generator) * (1 - height)
    return torch.stack([x0, y0, x0 + width, y0 + height], 1)


def sample_crops(images: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Return the boxes of the images (B,3,S,S) float, resized to (B,3,size,size), mirrored where ``flip``."""
    sign = 1.0 - 2.0 * flip.to(box.dtype)
    theta = torch.zeros(len(box), 2, 3)
    theta[:, 0, 0] = (box[:, 2] - box[:, 0]) * sign
    theta[:, 1, 1] = box[:, 3] - box[:, 1]
    theta[:, 0, 2] = box[:, 2] + box[:, 0] - 1
    theta[:, 1, 2] = box[:, 3] + box[:, 1] - 1
    grid = F.affine_grid(theta.to(images.device), [len(box), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def draw_colours(
    count: int, strength: float, grayscale: float, blur: float, generator: torch.Generator
) -> Colours:
    """Draw changes of the colours of some images; the arguments are those of `draw_crops`."""

    def factor(strength: float) -> Tensor:
        return _uniform((count, 1, 1, 1), 1 - strength, 1 + strength, generator)

    def chance(probability: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) < probability

    brightness, contrast = factor(strength), factor(strength)
    hue = _uniform((count, 1, 1, 1), -1, 1, generator) * (0.25 * strength * math.pi)
    saturation, jittered, grey = factor(0.5 * strength), chance(0.8), chance(grayscale)
    blurred = chance(blur) if blur > 0 else torch.zeros_like(grey)
    return Colours(brightness, contrast, hue, saturation, jittered, grey, blurred)


def change_colours(x: Tensor, colours: Colours) -> Tensor:
    """Return images (B,3,s,s) in [0,1] with other brightness, contrast, saturation, hue, grey and blur."""
    device = x.device
    luma = torch.tensor(_LUMA, device=device).view(1, 3, 1, 1)
    jittered = x * colours.brightness.to(device)
    mean = (jittered * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    jittered = mean + (jittered - mean) * colours.contrast.to(device)
    gray = (jittered * luma).sum(1, keepdim=True)
    chroma = _rotate_hue(jittered - gray, colours.hue.to(device)) * colours.saturation.to(device)
    jittered = (gray + chroma).clamp(0, 1)
    x = torch.where(colours.jittered.to(device), jittered, x)
    x = torch.where(colours.grey.to(device), (x * luma).sum(1, keepdim=True).expand_as(x), x)
    if colours.blurred.any():
        kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=device) / 16
        weight = (kernel[:, None] * kernel).expand(3, 1, 5, 5)
        blurred = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), weight, groups=3)
        x = torch.where(colours.blurred.to(device), blurred, x)
    return x


def _rotate_hue(chroma: Tensor, angle: Tensor) -> Tensor:
    """Rotate colours (B,3,h,w) about the grey axis by ``angle`` (B,1,1,1) radians (Rodrigues' formula)."""
    cross = (chroma.roll(-1, 1) - chroma.roll(1, 1)) / math.sqrt(3)
    mean = chroma.mean(1, keepdim=True)
    return chroma * angle.cos() - cross * angle.sin() + mean * (1 - angle.cos())


def draw_crops(
    aspect: Tensor,
    scale: tuple[float, float],
    generator: torch.Generator,
    *,
    jitter: float = 0.4,
    grayscale: float = 0.1,
    blur: float = 0.3,
) -> Crops:
    """Draw one random crop of each image, and how its colours are changed.

    Args:
        aspect: (B,) width / height of the images before squashing.
        scale: least and largest area of a crop as a fraction of the image.
        generator: a CPU generator; the same state gives the same crops on every device.
        jitter: strength of the colour jitter.
        grayscale: probability of a grey view.
        blur: probability of a blurred view.
    """
    box = random_boxes(aspect.cpu(), scale, generator)
    flip = torch.rand(len(box), generator=generator) < 0.5
    return Crops(box, flip, draw_colours(len(box), jitter, grayscale, blur, generator))


def crop_pixels(images: Tensor, crops: Crops, size: int) -> Tensor:
    """Return the pixels (B,3,size,size) of the crops, normalised.

    ``images`` are (B,3,S,S), uint8 or float in [0,1].
    """
    x = images.float() / 255 if images.dtype == torch.uint8 else images
    return _normalise(change_colours(sample_crops(x, crops.box, crops.flip, size), crops.colours))


def whole_crops(images: Tensor, size: int) -> Tensor:
    """Return the squashed images (B,3,S,S) uint8 unchanged but for size, normalised, (B,3,size,size)."""
    x = F.interpolate(images.float() / 255, (size, size), mode="bilinear", antialias=True)
    return _normalise(x)


def _normalise(x: Tensor) -> Tensor:
    mean = torch.tensor(MEAN, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=x.device).view(1, 3, 1, 1)
    return (x - mean) / std


def corresponding_points(
    a: Crops, b: Crops, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw points that both crops of an image see.

    Returns:
        points in ``a`` and in ``b``, each (B,count,2) as (x, y) in [-1,1] of the crop (``grid_sample``
        with ``align_corners=False``), and which images overlap at all, (B,) bool.
    """
    low = torch.maximum(a.box[:, :2], b.box[:, :2])
    high = torch.minimum(a.box[:, 2:], b.box[:, 2:])
    valid = (high > low).all(1)
    fraction = torch.rand(len(low), count, 2, generator=generator)
    point = low[:, None] + fraction * (high - low).clamp(min=0)[:, None]
    return _to_crop(a, point), _to_crop(b, point), valid


def _to_crop(crop: Crops, point: Tensor) -> Tensor:
    """Map image points (B,P,2) in [0,1] to crop coordinates in [-1,1]."""
    low, high = crop.box[:, None, :2], crop.box[:, None, 2:]
    local = 2 * (point - low) / (high - low) - 1
    sign = torch.ones_like(local)
    sign[..., 0] -= 2.0 * crop.flip[:, None].float()
    return local * sign


def tokens_at(patches: Tensor, points: Tensor) -> Tensor:
    """Interpolate patch tokens (B,h,w,C) at points (B,P,2) in [-1,1]; returns (B,P,C)."""
    grid = points[:, :, None].to(patches)
    out = F.grid_sample(
        patches.permute(0, 3, 1, 2), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return out[..., 0].transpose(1, 2)
