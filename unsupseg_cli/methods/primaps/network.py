"""Prototypes, their moving average, and what is drawn for the augmentation of PriMaPs-EM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.methods.primaps.config import TrainOptions
from unsupseg_cli.training.colours import COLOURS, Step, adjust, blur, grey


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


def draw_change(config: TrainOptions, generator: torch.Generator) -> list[Step]:
    """Draw the photometric change of one image by a CPU generator: a blur, then steps of colour in order, or grey."""

    def draw(low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    steps = [blur(config.blur_kernel, draw(config.blur_sigma_min, config.blur_sigma_max))]
    if draw() >= config.color_choice:
        return [*steps, grey] if draw() < config.grey_probability else steps
    if draw() >= config.jitter_probability:
        return steps
    for choice in torch.randperm(len(COLOURS), generator=generator).tolist():
        middle = 0.0 if COLOURS[choice] == "hue" else 1.0
        steps.append(adjust(COLOURS[choice], draw(middle - config.jitter, middle + config.jitter)))
    return steps
