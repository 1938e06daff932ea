"""Stochastic EM over prototypes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.clustering.principal import principal_directions
from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.methods.interface import Inputs, TrainedHead, Trainer
from unsupseg_cli.methods.primaps.config import TrainOptions
from unsupseg_cli.methods.primaps.network import (
    PrototypeHead,
    draw_change,
    ema_decay,
    ema_update,
)
from unsupseg_cli.methods.primaps.objective import (
    Average,
    cosine_kmeans_loss,
    focal_loss,
    mode_assignment,
    same,
)
from unsupseg_cli.models.dense import resize_maps
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.colours import Step, change_colours
from unsupseg_cli.training.live import LiveSource
from unsupseg_cli.training.tokens import flat_batches, sample_tokens, shuffled_batches


def initialise(batches: Callable[[int], Iterable[Tensor]], classes: int, config: TrainOptions) -> Tensor:
    """Return the first prototypes (K, C): principal directions, moved by cosine k-means with Adam.

    Their lengths start at 1 and are what Adam's steps make of them (published code, clustering.py).

    Args:
        batches: returns the batches (..., C) of an epoch; 0 is the one that PCA sees.
        classes: number of classes K.
        config: epochs, learning rate and the number of batches that PCA sees.
    """
    first = (batch for batch, _ in zip(batches(0), range(config.init_batches), strict=False))
    prototypes = principal_directions(first, classes).requires_grad_()
    optimizer = torch.optim.Adam([prototypes], lr=config.lr)
    for epoch in range(config.init_epochs):
        for batch in batches(1 + epoch):
            optimizer.zero_grad()
            cosine_kmeans_loss(batch.float(), prototypes).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return prototypes.detach()


class PrimapsEM(nn.Module):
    """Running and momentum prototypes with the E- and M-step.

    Args:
        prototypes: (K, C), from ``initialise`` or another method's class head.
        config: resolution, focal exponent and moving average.
    """

    def __init__(self, prototypes: Tensor, config: TrainOptions) -> None:
        super().__init__()
        self.config = config
        self.running = PrototypeHead(prototypes)
        self.momentum = copy.deepcopy(self.running).requires_grad_(False)

    def losses(
        self, clean: Tensor, augmented: Tensor, mask_ids: Tensor, average: Average = same
    ) -> dict[str, Tensor]:
        """Return the loss of a batch, with how much of it is covered and how many classes are in use.

        Logits are enlarged instead of features: the head is linear and has no bias, so both are the same.

        Args:
            clean: features (B, h, w, C) of the plain images.
            augmented: features (B, h, w, C) of the augmented images; the same tensor if there are none.
            mask_ids: (B, H, W) integers, -1 for no mask; any size, same view of the image.
            average: makes means over these images those over the batch, of which they may be a share.

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
            classes = resize_maps(self.momentum(clean), size).argmax(1)
            labels = mode_assignment(ids, classes, len(self.momentum.length))
        loss = focal_loss(
            resize_maps(self.running(augmented), size), labels, self.config.focal_gamma, average
        )
        covered = labels >= 0
        used = (torch.bincount(labels[covered], minlength=1) > 0).sum().float()
        return {"loss": loss, "covered": covered.float().mean(), "classes_used": used}

    def after_step(self, step: int) -> None:
        """Update the momentum prototypes every few steps."""
        decay = ema_decay(step, self.config)
        if decay is not None:
            ema_update(self.momentum, self.running, decay)

    def prototypes(self, which: str = "momentum") -> Tensor:
        """Return the plain (K, C) matrix of the ``momentum`` (the result) or the ``running`` prototypes."""
        head = self.momentum if which == "momentum" else self.running
        return head.matrix().detach().clone()


class PrimapsTrainer(Trainer):
    """PriMaPs-EM.

    On stored tokens the M-step sees the same features as the E-step. With the network in the loop, as in the paper,
    images are mirrored by chance and the M-step sees photometrically augmented ones.
    """

    options: TrainOptions
    explained = MappingProxyType(
        {
            "covered": "share of the pixels that lie in a mask with a class: good if it stays",
            "classes_used": "classes in the batch: good if it stays near the number of classes",
        }
    )

    def __init__(self, options: TrainOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        assert inputs.masks is not None
        self.labels = inputs.masks.labels
        views = len(inputs.features.grids)
        self.batch = min(options.batch, views)
        self.steps = options.epochs * (views // self.batch)
        self.em = PrimapsEM(_first_prototypes(options, inputs).to(inputs.device), options)
        self.module: nn.Module = self.em

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over the running prototypes."""
        return torch.optim.Adam(self.em.running.parameters(), lr=self.options.lr)

    def read(self, batch: Batch) -> dict[int, tuple[Tensor, Tensor]]:
        """Read tokens, or pixels where the network is in the loop, and masks of each place of this process."""
        network, views = self.inputs.network, batch.views
        shown = self.inputs.features.tokens(views) if network is None else network.pixels(views)
        masks = [torch.from_numpy(self.labels[view]).to(self.inputs.device) for view in views]
        return dict(zip(batch.places, zip(shown, masks, strict=True), strict=True))

    def losses(self, batch: Batch, read: dict[int, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return the focal loss of some views; views of one grid are compared together."""
        draw = torch.Generator().manual_seed(seeds.stream(self.inputs.seed, "augment", batch.step))
        grids = self.inputs.features.grids[batch.whole].tolist()
        parts = []
        for members in indices_by(map(tuple, grids)).values():
            own = [place for place in members if place in read]
            shown, masks = [read[place][0] for place in own], [read[place][1] for place in own]
            clean = augmented = shown
            if (network := self.inputs.network) is not None:
                looks = dict(zip(members, self._draw_looks(len(members), draw), strict=True))
                flips, changes = [looks[place][0] for place in own], [looks[place][1] for place in own]
                masks = [_mirror(mask, flip) for mask, flip in zip(masks, flips, strict=True)]
                pixels = [_mirror(image, flip) for image, flip in zip(shown, flips, strict=True)]
                if own:
                    clean, augmented = self._live_tokens(network, pixels, changes)
            share = len(own) / len(members)
            if not own:  # the other processes average over this one too
                batch.average(torch.zeros(self.inputs.classes, device=self.inputs.device), share)
                continue
            part = self.em.losses(
                torch.stack(clean),
                torch.stack(augmented),
                torch.stack(masks),
                partial(batch.average, share=share),
            )
            parts.append({name: value * len(own) / len(read) for name, value in part.items()})
        return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}

    def _draw_looks(self, images: int, draw: torch.Generator) -> list[tuple[bool, list[Step]]]:
        """Draw for some images whether each is mirrored, and its photometric change."""
        chance = torch.rand(images, generator=draw).tolist()
        return [(value < self.options.mirror, draw_change(self.options, draw)) for value in chance]

    def _live_tokens(
        self, network: LiveSource, pixels: list[Tensor], changes: list[list[Step]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tokens of images of one size, and of their augmented versions."""
        backbone = network.backbone

        def changed(images: Tensor) -> Tensor:
            return torch.stack(list(map(change_colours, images, changes)))

        def augment(images: Tensor) -> Tensor:
            if self.options.augment == "image":
                return changed(images)
            mean, deviation = backbone.mean / 255, backbone.std / 255
            return changed((images - mean) / deviation) * deviation + mean

        return network.encode(pixels), network.encode(pixels, augment)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Update the momentum prototypes."""
        self.em.after_step(step)

    def finish(self) -> TrainedHead:
        """Return the momentum prototypes as a linear head, as sharp as ``alpha`` asks: no token changes its class."""
        weight = self.em.prototypes().cpu()
        if self.options.alpha:
            weight = weight * sharpening(self._tokens(), weight, self.options.alpha)
        classes, dim = weight.shape
        tensors = {"class_head.weight": weight, "class_head.bias": torch.zeros(classes)}
        used = torch.zeros(classes, dtype=torch.long)
        for tokens in self._tokens():
            used += torch.bincount((tokens @ weight.T).argmax(-1), minlength=classes)
        empty = int((used == 0).sum())
        warnings = (
            [f"{empty} of {classes} classes are given to no token: try fewer --classes"] if empty else []
        )
        if self.options.ema_count == "updates" and self.steps <= self.options.ema_every:
            warnings.append(
                f"the result is the first prototypes, which take part in the training after {self.options.ema_every} "
                f"steps, and there were {self.steps}: raise epochs, or lower ema_every or batch"
            )
        head = {"type": "linear", "classes": classes, "dim": dim}
        return TrainedHead(head, tensors, figures={"empty_classes": empty}, warnings=warnings)

    def _tokens(self) -> Iterator[Tensor]:
        """Yield all tokens on the CPU, where the result is made."""
        batches = flat_batches(self.inputs.features, reporter=self.inputs.reporter)
        return (tokens.cpu() for tokens in batches)


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


def _first_prototypes(options: TrainOptions, inputs: Inputs) -> Tensor:
    features, classes = inputs.features, inputs.classes
    if options.init == "model":
        model = inputs.model
        if model is None or model.shape != (classes, features.dim):
            base = "none" if model is None else f"one of {len(model)} classes"
            raise UsageError(
                f"--set init=model needs features of a model of {classes} classes (extract --model), found {base}; "
                "leave it out."
            )
        return model
    if options.init == "pca":

        def batches(epoch: int) -> Iterator[Tensor]:
            shuffled = shuffled_batches(features, options.batch, seeds.stream(inputs.seed, "init", epoch))
            count = max(1, len(features.grids) // options.batch)
            return inputs.reporter.track(shuffled, f"first prototypes, pass {epoch}", total=count)

        return initialise(batches, classes, options)
    draw = seeds.stream(inputs.seed, "starts")
    sample = sample_tokens(features, options.init_sample, draw, inputs.reporter)
    return spherical_kmeans(
        F.normalize(sample, dim=-1),
        classes,
        restarts=options.init_restarts,
        seed=seeds.stream(inputs.seed, "init"),
        reporter=inputs.reporter,
    ).centroids


def _mirror(image: Tensor, flip: bool) -> Tensor:
    return image.flip(-1) if flip else image
