"""A Mask R-CNN (torchvision) that learns masks, and finds objects again where it has learnt them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.methods.interface import Inputs
from unsupseg_cli.methods.maskdistill.config import FilterOptions
from unsupseg_cli.methods.maskdistill.network import load_resnet
from unsupseg_cli.models.operators import require_operators

Found = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]
"""Masks (M, H, W) that are not empty, the score of each in [0, 1], and its number or class."""
Image = NDArray[np.uint8]
Learnt = Callable[[int], tuple[Image, NDArray[np.bool_], NDArray[np.int64]]]
"""View -> the image (H, W, 3), its masks (M, H, W), none empty, and the number of each, from 1 on."""


def build_detector(classes: int, resnet: str, side: int) -> nn.Module:
    """Return a Mask R-CNN on a ResNet-50, of which weights that are given keep statistics and first two layers.

    Random weights are all trained, with groups of channels normalised, as a batch is too small for statistics.

    Args:
        classes: numbers that an object may have, beside 0 for none.
        resnet: the ResNet's weights, see `load_resnet`.
        side: shorter side of the images, which keep their size.
    """
    require_operators()
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    given = resnet != "random"
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm2d if given else partial(nn.GroupNorm, 32),
        trainable_layers=3 if given else 5,
    )
    load_resnet(backbone.body, resnet)
    detector: nn.Module = MaskRCNN(
        backbone, classes + 1, min_size=side, max_size=8 * side, box_batch_size_per_image=_SAMPLED
    )
    return detector


def train_detector(
    detector: nn.Module,
    views: Sequence[int],
    learnt: Learnt,
    *,
    epochs: int,
    batch: int,
    lr: float,
    generator: np.random.Generator,
    reporter: Reporter,
) -> float:
    """Train by SGD with warm-up (momentum 0.9, decay 1e-4: torchvision's reference); return the last loss.

    Args:
        detector: is trained in place.
        views: to learn from, all of which have a mask.
        learnt: gives image and masks of a view.
        epochs: how often each view is seen.
        batch: views per step; the last of an epoch may be fewer.
        lr: learning rate, of which the first hundred steps take a growing part.
        generator: shuffles the views.
        reporter: is told about the progress.
    """
    device = next(detector.parameters()).device
    weights = [weight for weight in detector.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=lr, momentum=0.9, weight_decay=1e-4)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=_WARM_UP)
    orders = [generator.permutation(views).tolist() for _ in range(epochs)]
    steps = [order[i : i + batch] for order in orders for i in range(0, len(order), batch)]
    detector.train()
    last = float("nan")
    for step in reporter.track(steps, "detector", total=len(steps)):
        examples = [learnt(view) for view in step]
        images = [_image(image).to(device) for image, *_ in examples]
        targets = [_target(masks, numbers, device) for _, masks, numbers in examples]
        loss = torch.stack(list(detector(images, targets).values())).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, _CLIP)
        optimizer.step()
        warm_up.step()
        last = float(loss.detach())
    return last


_WARM_UP = 100  # steps
_SAMPLED = (
    64  # boxes of an image that a step learns from: ours, instead of 512, as most images have one object
)
_CLIP = 10.0  # norm of the gradient: heads from scratch start steep


@torch.inference_mode()
def detect(detector: nn.Module, image: Image) -> Found:
    """Return the objects of an image, with their numbers."""
    device = next(detector.parameters()).device
    detector.eval()
    found = detector([_image(image).to(device)])[0]
    masks = (found["masks"][:, 0] > 0.5).cpu().numpy()
    some = masks.any((1, 2))
    scores, numbers = found["scores"].cpu().numpy(), found["labels"].cpu().numpy()
    return masks[some], scores[some].astype(np.float64), numbers[some].astype(np.int64)


class MaskDetector:
    """Learns the masks of a labeller's inputs, and finds objects with their classes.

    Masks without a class are learnt where none has one, as objects of one kind that gets none; else they are left out.
    """

    def __init__(self, options: FilterOptions, inputs: Inputs) -> None:
        assert inputs.masks is not None
        assert inputs.masks.masks is not None
        self._options, self._inputs = options, inputs
        self._masks, self._groups = inputs.masks.masks, inputs.masks.groups
        self._without = all((group == VOID).all() for group in self._groups)
        self._first = int(options.background)

    def fit(self) -> dict[str, Any]:
        """Train; return figures for the manifest.

        Raises:
            UsageError: there is no mask to learn from.
        """
        options, inputs = self._options, self._inputs
        numbers = [self._numbers(group) for group in self._groups]
        views = [view for view, number in enumerate(numbers) if (number > 0).any()]
        if not views:
            raise UsageError("There is no mask that a detector could learn; give other masks.")
        if left := sum(int((group == VOID).sum()) for group in self._groups) * (not self._without):
            inputs.reporter.warn(f"the detector does not learn {left:,} masks, which have no class")
        side = min(inputs.images(views[:1])[0].shape[:2])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.stream(inputs.seed, "detector"))
            self._network = build_detector(
                int(max(numbers[view].max() for view in views)), options.resnet, side
            ).to(inputs.device)
            loss = train_detector(
                self._network,
                views,
                self._learnt,
                epochs=options.detector_epochs,
                batch=options.detector_batch,
                lr=options.detector_lr,
                generator=np.random.default_rng(seeds.stream(inputs.seed, "order")),
                reporter=inputs.reporter,
            )
        return {"detector_views": len(views), "detector_loss": loss}

    def __call__(self, image: Image) -> Found:
        """Return the objects of an image, with their classes."""
        masks, score, number = detect(self._network, image)
        return masks, score, np.full(len(masks), VOID) if self._without else number + self._first - 1

    def _numbers(self, group: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what the detector calls masks of some classes: from 1 on, 0 for what it does not learn."""
        if self._without:
            return np.ones(len(group), np.int64)
        return np.maximum(group - self._first + 1, 0)

    def _learnt(self, view: int) -> tuple[Image, NDArray[np.bool_], NDArray[np.int64]]:
        image = self._inputs.images([view])[0]
        masks, number = resized(self._masks(view), image.shape[:2]), self._numbers(self._groups[view])
        usable = masks.any((1, 2)) & (number > 0)
        return image, masks[usable], number[usable]


def resized(masks: NDArray[np.bool_], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return masks (M, h, w) at another size, by the nearest cell."""
    if masks.shape[1:] == size:
        return masks
    if not len(masks):
        return np.zeros((0, *size), np.bool_)
    values: Tensor = F.interpolate(torch.from_numpy(masks)[:, None].float(), size=size, mode="nearest-exact")
    large: NDArray[np.bool_] = (values[:, 0] > 0.5).numpy()
    return large


def _image(image: Image) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


def _target(masks: NDArray[np.bool_], numbers: NDArray[np.int64], device: torch.device) -> dict[str, Any]:
    boxes = np.zeros((len(masks), 4))
    for number, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes[number] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32, device=device),
        "labels": torch.from_numpy(numbers).to(device),
        "masks": torch.from_numpy(masks.astype(np.uint8)).to(device),
    }
