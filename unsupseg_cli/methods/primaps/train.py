"""Stochastic EM over prototypes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.interface import PseudolabelSet, TrainedHead
from unsupseg_cli.methods.primaps.config import TrainConfig
from unsupseg_cli.methods.primaps.network import (
    PrototypeHead,
    ema_decay,
    ema_update,
    photometric,
    principal_prototypes,
)
from unsupseg_cli.methods.primaps.objective import cosine_kmeans_loss, focal_loss, mode_assignment
from unsupseg_cli.training.live import LiveSource
from unsupseg_cli.training.tokens import TokenSource, flat_batches, sample_tokens


def initialise(batches: Callable[[], Iterable[Tensor]], classes: int, config: TrainConfig) -> Tensor:
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

    def __init__(self, prototypes: Tensor, config: TrainConfig) -> None:
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


class Task:
    """PriMaPs-EM.

    On stored tokens the M-step sees the same features as the E-step. With a live source, the paper's, images
    are mirrored by chance and the M-step sees photometrically augmented ones.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        source: TokenSource,
        pseudolabels: PseudolabelSet | None,
        classes: int,
        seed: int,
        device: torch.device,
        live: LiveSource | None = None,
        head: Tensor | None = None,
    ) -> None:
        if pseudolabels is None:
            raise UsageError("PriMaPs-EM needs masks: run `unsupseg pseudolabel --method primaps` first.")
        self.config, self.source, self.device, self.live, self.seed = config, source, device, live, seed
        self.labels = pseudolabels.labels
        self.batch = min(config.batch, len(source.grids))
        self.steps = config.epochs * (len(source.grids) // self.batch)
        start = _first_prototypes(source, classes, config, seed, head)
        self.em = PrimapsEM(start.to(device), config)
        self.module: nn.Module = self.em

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over the running prototypes."""
        return torch.optim.Adam(self.em.running.parameters(), lr=self.config.lr)

    def losses(self, views: list[int], step: int) -> dict[str, Tensor]:
        """Return the focal loss of some views; views of one grid are compared together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for view in views:
            groups.setdefault(tuple(self.source.grids[view].tolist()), []).append(view)
        draw = torch.Generator().manual_seed(seeds.stream(self.seed, "augment", step))
        parts = []
        for members in groups.values():
            masks = [torch.from_numpy(self.labels[view]).to(self.device) for view in members]
            if self.live is None:
                clean = augmented = self.source.tokens(members)
            else:
                mirrored = [
                    bool(one < self.config.mirror) for one in torch.rand(len(members), generator=draw)
                ]
                masks = [_mirror(one, flip) for one, flip in zip(masks, mirrored, strict=True)]
                clean, augmented = self._live(self.live, members, mirrored, draw)
            part = self.em.losses(
                torch.stack(clean).to(self.device),
                torch.stack(augmented).to(self.device),
                torch.stack(masks),
            )
            parts.append({name: value * len(members) / len(views) for name, value in part.items()})
        return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}

    def _live(
        self, live: LiveSource, views: list[int], mirrored: list[bool], draw: torch.Generator
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tokens of images and of their augmented versions, both mirrored or not."""
        pixels = [_mirror(one, flip) for one, flip in zip(live.pixels(views), mirrored, strict=True)]
        augmented = live.encode(pixels, lambda images: photometric(images, self.config, draw))
        return live.encode(pixels), augmented

    def after_step(self, step: int) -> None:
        """Update the momentum prototypes."""
        self.em.after_step(step)

    def finish(self) -> TrainedHead:
        """Return the momentum prototypes as a linear head, as sharp as ``alpha`` asks: no token changes its class."""
        weight = self.em.prototypes().cpu()
        if self.config.alpha:
            weight = weight * sharpening(flat_batches(self.source), weight, self.config.alpha)
        classes, dim = weight.shape
        tensors = {"class_head.weight": weight, "class_head.bias": torch.zeros(classes)}
        used = torch.zeros(classes, dtype=torch.long)
        for tokens in flat_batches(self.source):
            used += torch.bincount((tokens @ weight.T).argmax(-1), minlength=classes)
        empty = int((used == 0).sum())
        warnings = (
            [f"{empty} of {classes} classes are given to no token: try fewer --classes"] if empty else []
        )
        head = {"type": "linear", "classes": classes, "dim": dim}
        return TrainedHead(head, tensors, figures={"empty_classes": empty}, warnings=warnings)


@torch.no_grad()
def sharpening(batches: Iterable[Tensor], weight: Tensor, alpha: float) -> float:
    """Return the factor after which logits spread over the classes as much as ``alpha`` times the cosines do.

    Features of full length times learnt prototypes give sharp scores, of which a CRF changes little; cosines are what
    the class scores of the other methods are made of.

    Args:
        batches: tokens (n, C).
        weight: (K, C): logits = tokens @ weight.T.
        alpha: sharpness.
    """
    logits = cosines = 0.0
    unit = F.normalize(weight, dim=1)
    for tokens in batches:
        logits += float((tokens @ weight.T).std(1, correction=0).sum())
        cosines += float((F.normalize(tokens, dim=1) @ unit.T).std(1, correction=0).sum())
    return alpha * cosines / logits if logits else 1.0


def _first_prototypes(
    source: TokenSource, classes: int, config: TrainConfig, seed: int, head: Tensor | None
) -> Tensor:
    if config.init == "model":
        if head is None or head.shape != (classes, source.dim):
            found = "none" if head is None else f"one of {len(head)} classes"
            raise UsageError(
                f"--set init=model needs features of a model of {classes} classes (extract --model), found {found}; "
                "leave it out."
            )
        return head
    if config.init == "pca":
        return initialise(lambda: flat_batches(source, config.batch), classes, config)
    sample = F.normalize(sample_tokens(source, config.init_sample, seeds.stream(seed, "starts")), dim=-1)
    return spherical_kmeans(
        sample, classes, restarts=config.init_restarts, seed=seeds.stream(seed, "init")
    ).centroids


def _mirror(image: Tensor, flip: bool) -> Tensor:
    return image.flip(-1) if flip else image


def _enlarge(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
