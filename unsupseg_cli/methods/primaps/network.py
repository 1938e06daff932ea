"""Prototypes, their moving average, and the photometric augmentation of PriMaPs-EM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.primaps.config import TrainOptions
from unsupseg_cli.models.operators import require_operators

require_operators()
from torchvision.transforms.v2 import functional as TF  # noqa: E402


class PrototypeHead(nn.Module):
    """K prototypes on un-normalised features: a weight-normed 1x1 convolution without bias.

    Args:
        prototypes: (K, C) directions; the lengths of the weights start at 1 and are learnt. The longer a direction is
            given, the less a step of the optimizer turns it (as the published code has it).
    """

    def __init__(self, prototypes: Tensor) -> None:
        super().__init__()
        self.direction = nn.Parameter(prototypes.detach().float().clone())
        self.length = nn.Parameter(torch.ones(len(prototypes), 1, device=prototypes.device))

    def matrix(self) -> Tensor:
        """Return the plain weight (K, C): logits = features @ matrix.T."""
        return self.length * F.normalize(self.direction, dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K, h, w) of channel-last features (B, h, w, C)."""
        return (features @ self.matrix().T).movedim(-1, 1)


def ema_decay(step: int, config: TrainOptions) -> float | None:
    """Return the decay of the moving average after a step, counted from 0; None where it is not updated.

    By updates there is none after the first step, and the first two copy: the published code averages nothing before
    (ema.py).
    """
    updates, rest = divmod(step, config.ema_every)
    if rest or (config.ema_count == "updates" and updates == 0):
        return None
    if config.ema_count == "updates" and updates < 3:
        return 0.0
    number = step if config.ema_count == "steps" else updates - 1
    return min(config.ema_decay, number / (number + 1))


@torch.no_grad()
def ema_update(momentum: PrototypeHead, running: PrototypeHead, decay: float) -> None:
    """Move the momentum prototypes towards the running ones in place."""
    for slow, fast in zip(momentum.parameters(), running.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


@torch.no_grad()
def principal_prototypes(batches: Iterable[Tensor], count: int) -> Tensor:
    """Return the first principal directions of all features as prototypes, (count, C) float32 unit rows.

    The covariance is summed up batch by batch, so that memory does not grow with the collection. The entry of
    largest magnitude in each direction is positive.

    Args:
        batches: tensors (..., C).
        count: number of classes K.

    Raises:
        UsageError: no features, or K larger than C.
    """
    number, total, moment = 0, None, None
    for batch in batches:
        flat = batch.reshape(-1, batch.shape[-1]).double()
        if total is None or moment is None:
            if count > flat.shape[1]:
                raise UsageError(
                    f"PCA gives at most as many prototypes as features have channels ({flat.shape[1]}); asked "
                    f"for {count} classes. Ask for fewer with --classes."
                )
            total, moment = torch.zeros_like(flat[0]), flat.new_zeros(flat.shape[1], flat.shape[1])
        number += len(flat)
        total += flat.sum(0)
        moment += flat.T @ flat
    if total is None or moment is None:
        raise UsageError("There are no features to start the prototypes from; expected at least one image.")
    mean = total / number
    directions = torch.linalg.eigh(moment / number - torch.outer(mean, mean)).eigenvectors.T.flip(0)[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    oriented: Tensor = directions * torch.where(largest < 0, -1.0, 1.0)
    return oriented.float()


@dataclass(frozen=True)
class Change:
    """The photometric change of one image: width of the blur, then steps of colour in order, or grey."""

    sigma: float
    colors: Sequence[tuple[Callable[[Tensor, float], Tensor], float]] = ()
    grey: bool = False


def draw_change(config: TrainOptions, generator: torch.Generator) -> Change:
    """Draw the photometric change of one image by a CPU generator."""

    def draw(low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    sigma = draw(config.blur_sigma_min, config.blur_sigma_max)
    if draw() >= config.color_choice:
        return Change(sigma, grey=draw() < config.grey_probability)
    if draw() >= config.jitter_probability:
        return Change(sigma)
    reach, colors = config.jitter, []
    for choice in torch.randperm(4, generator=generator).tolist():
        change = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)[choice]
        middle = 0.0 if change is TF.adjust_hue else 1.0
        colors.append((change, draw(middle - reach, middle + reach)))
    return Change(sigma, colors)


def photometric(images: Tensor, changes: Sequence[Change], blur_kernel: int) -> Tensor:
    """Blur every image, then change its colours or make it grey.

    Args:
        images: (B, 3, H, W) float in [0, 1]; changes of colour cut off what lies outside.
        changes: of each image.
        blur_kernel: side of the blur in pixels, odd.

    Returns:
        (B, 3, H, W) float.
    """
    results = []
    # The mirrored border of the blur must be thinner than the image.
    kernel = min(blur_kernel, 2 * ((min(images.shape[-2:]) - 1) // 2) + 1)
    for image, change in zip(images, changes, strict=True):
        image = TF.gaussian_blur(image, [kernel, kernel], [change.sigma, change.sigma])
        for adjust, amount in change.colors:
            image = adjust(image, amount)
        if change.grey:
            image = TF.rgb_to_grayscale(image, num_output_channels=3)
        results.append(image)
    return torch.stack(results)
