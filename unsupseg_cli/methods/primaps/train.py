"""Stochastic EM over prototypes (section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.primaps.config import PrimapsTrainConfig
from unsupseg_cli.methods.primaps.network import (
    PrototypeHead,
    ema_decay,
    ema_update,
    principal_prototypes,
)
from unsupseg_cli.methods.primaps.objective import cosine_kmeans_loss, focal_loss, mode_assignment


def initialise(batches: Callable[[], Iterable[Tensor]], classes: int, config: PrimapsTrainConfig) -> Tensor:
    """Return the first prototypes (K, C): principal directions, moved by cosine k-means with Adam.

    Args:
        batches: returns the batches (..., C) of one epoch each time it is called.
        classes: number of classes K.
        config: epochs, learning rate and the number of batches that PCA sees.
    """
    first = (batch for batch, _ in zip(batches(), range(config.init_batches), strict=False))
    prototypes = principal_prototypes(first, classes).requires_grad_()
    optimizer = torch.optim.Adam([prototypes], lr=config.lr)
    for _ in range(config.init_epochs):
        for batch in batches():
            optimizer.zero_grad()
            cosine_kmeans_loss(batch.float(), prototypes).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                prototypes.copy_(F.normalize(prototypes, dim=1))
    return prototypes.detach()


class PrimapsEM(nn.Module):
    """Running and momentum prototypes with the E- and M-step.

    Args:
        prototypes: (K, C), from ``initialise`` or another method's class head.
        config: resolution, focal exponent and moving average.
    """

    def __init__(self, prototypes: Tensor, config: PrimapsTrainConfig) -> None:
        super().__init__()
        self.config = config
        self.running = PrototypeHead(prototypes)
        self.momentum = copy.deepcopy(self.running).requires_grad_(False)

    def losses(self, clean: Tensor, augmented: Tensor, mask_ids: Tensor) -> dict[str, Tensor]:
        """Return the loss of a batch, with how much of it is covered and how many classes are in use.

        Logits are enlarged instead of features: the head is linear and has no bias, so both are the same.

        Args:
            clean: features (B, h, w, C) of the plain images.
            augmented: features (B, h, w, C) of the augmented images; the same tensor if there are none.
            mask_ids: (B, H, W) integers, -1 for no mask; any size, same view of the image.

        Raises:
            UsageError: masks and features are not of the same number of images.
        """
        if len(clean) != len(mask_ids) or clean.shape != augmented.shape:
            raise UsageError(
                f"Features {tuple(clean.shape)}, augmented features {tuple(augmented.shape)} and masks "
                f"{tuple(mask_ids.shape)} do not belong together; expected the same images in each."
            )
        side = self.config.resolution
        size = (side, side) if side else (clean.shape[1], clean.shape[2])
        ids = F.interpolate(mask_ids[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
        with torch.no_grad():
            classes = _enlarge(self.momentum(clean), size).argmax(1)
            labels = mode_assignment(ids, classes, len(self.momentum.length))
        loss = focal_loss(_enlarge(self.running(augmented), size), labels, self.config.focal_gamma)
        covered = labels >= 0
        used = (torch.bincount(labels[covered], minlength=1) > 0).sum().float()
        return {"loss": loss, "covered": covered.float().mean(), "classes_used": used}

    def after_step(self, step: int) -> None:
        """Update the momentum prototypes every few steps."""
        if step % self.config.ema_every == 0:
            ema_update(self.momentum, self.running, ema_decay(step, self.config.ema_decay))

    def prototypes(self, which: str = "momentum") -> Tensor:
        """Return the plain (K, C) matrix of the ``momentum`` (the result) or the ``running`` prototypes."""
        head = self.momentum if which == "momentum" else self.running
        return head.matrix().detach().clone()


def _enlarge(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
