"""A Mask R-CNN (torchvision) that learns masks, and finds objects again where it has learnt them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.data.masks import extent
from unsupseg_cli.models.deeplab import load_resnet
from unsupseg_cli.models.operators import require_operators

Detections = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]
"""Masks (M, H, W) that are not empty, the score of each in [0, 1], and its number or class."""
Image = NDArray[np.uint8]
Learnt = Callable[[int], tuple[Image, NDArray[np.bool_], NDArray[np.int64]]]
"""View -> the image (H, W, 3), its masks (M, H, W), none empty, and the number of each, from 1 on."""
_WARM_UP = 100  # steps
_SAMPLED = 64  # boxes of an image that a step learns from: ours, instead of 512: most images have one object
_CLIP = 10.0  # norm of the gradient: heads from scratch start steep


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


@torch.inference_mode()
def detect(detector: nn.Module, image: Image) -> Detections:
    """Return the objects of an image, with their numbers."""
    device = next(detector.parameters()).device
    detector.eval()
    output = detector([_image(image).to(device)])[0]
    masks = (output["masks"][:, 0] > 0.5).cpu().numpy()
    filled = masks.any((1, 2))
    scores, numbers = output["scores"].cpu().numpy(), output["labels"].cpu().numpy()
    return masks[filled], scores[filled].astype(np.float64), numbers[filled].astype(np.int64)


def _image(image: Image) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


def _target(masks: NDArray[np.bool_], numbers: NDArray[np.int64], device: torch.device) -> dict[str, Any]:
    boxes = np.zeros((len(masks), 4))
    for number, (rows, columns) in enumerate(map(extent, masks)):
        boxes[number] = columns.start, rows.start, columns.stop, rows.stop
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32, device=device),
        "labels": torch.from_numpy(numbers).to(device),
        "masks": torch.from_numpy(masks.astype(np.uint8)).to(device),
    }
