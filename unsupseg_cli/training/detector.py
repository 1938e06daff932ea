"""A Mask R-CNN (torchvision) that learns masks, and finds objects again where it has learnt them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unsupseg_cli.core import seeds
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.data.masks import extent
from unsupseg_cli.models.deeplab import load_resnet
from unsupseg_cli.models.operators import require_operators
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.loop import Checkpoint, Losses, Schedule, Task, fit

Detections = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]
"""Masks (M, H, W) that are not empty, the score of each in [0, 1], and its number or class."""
Image = NDArray[np.uint8]
Learnt = Callable[[int], tuple[Image, NDArray[np.bool_], NDArray[np.int64]]]
"""View -> the image (H, W, 3), its masks (M, H, W), none empty, and the number of each, from 1 on."""
_WARM_UP, _START = 100, 0.01  # steps, and the factor on the learning rate of the first
_SAMPLED = 64  # boxes of an image that a step learns from: ours, instead of 512: most images have one object
_CLIP = 10.0  # norm of the gradient: heads from scratch start steep
_SAVE_SECONDS = 60.0  # the state is 350 MB, of some hundred steps on a GPU and of ten on a CPU


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


class DetectorTask(Task):
    """A detector that learns by SGD with warm-up (momentum 0.9, decay 1e-4: torchvision's reference).

    Args:
        detector: is trained in place.
        batches: the views of each step, all of which have a mask.
        learnt: gives image and masks of a view.
        lr: learning rate, of which the first hundred steps take a growing part.
    """

    clip_norm = _CLIP
    advice = "lower detector_lr (`--set detector_lr=...`)"

    def __init__(self, detector: nn.Module, batches: list[list[int]], learnt: Learnt, lr: float) -> None:
        self.module, self._batches, self._learnt, self._lr = detector, batches, learnt, lr
        self._device = next(detector.parameters()).device
        self.loss = torch.zeros(())

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD over the weights that are trained."""
        weights = [weight for weight in self.module.parameters() if weight.requires_grad]
        return torch.optim.SGD(weights, lr=self._lr, momentum=0.9, weight_decay=1e-4)

    def views(self, schedule: Schedule, step: int) -> list[int]:
        """Return the views of a step."""
        return self._batches[step]

    def rate(self, progress: float) -> float:
        """Return the factor of the warm-up."""
        step = progress * len(self._batches)
        return _START + (1 - _START) * min(step / _WARM_UP, 1.0)

    def read(self, batch: Batch) -> list[tuple[Image, NDArray[np.bool_], NDArray[np.int64]]]:
        """Read the images of a batch, and what is learnt of them."""
        return [self._learnt(view) for view in batch.views]

    def losses(self, batch: Batch, read: Any) -> Losses:
        """Return the losses of the detector's parts, and their sum."""
        images = [_image(image).to(self._device) for image, *_ in read]
        targets = [_target(masks, numbers, self._device) for _, masks, numbers in read]
        losses: Losses = self.module(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        self.loss = loss.detach()
        return {**losses, "loss": loss}

    def state(self) -> dict[str, Any]:
        """Return the loss, which a run that was killed after the last step tells too."""
        return {"loss": self.loss}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back the loss."""
        self.loss = state["loss"]


def train_detector(
    detector: nn.Module,
    views: Sequence[int],
    learnt: Learnt,
    *,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    reporter: Reporter,
    checkpoint: Checkpoint | None = None,
) -> float:
    """Train in place, going on from the checkpoint if there is one; return the last loss.

    Args:
        detector: of `build_detector`.
        views: to learn from, all of which have a mask.
        learnt: gives image and masks of a view.
        epochs: how often each view is seen.
        batch: views per step; the last of an epoch may be fewer.
        lr: learning rate.
        seed: of the order of the views, and of what a step samples.
        reporter: is told about the progress.
        checkpoint: where the state goes now and then; default: nowhere.

    Raises:
        UnsupsegError: the loss or the gradient became NaN or infinite.
    """
    from unsupseg_cli.training.launch import alone  # a second of imports

    shuffle = np.random.default_rng(seeds.stream(seed, "order"))
    orders = [shuffle.permutation(views).tolist() for _ in range(epochs)]
    batches = [order[i : i + batch] for order in orders for i in range(0, len(order), batch)]
    task = DetectorTask(detector, batches, learnt, lr)
    schedule = Schedule(len(batches), batch, len(views), seed, save_seconds=_SAVE_SECONDS)

    def track(steps: Iterable[int], done: int) -> Iterator[int]:
        if done:
            reporter.info(f"going on after step {done} of the detector")
        return reporter.track(steps, "detector", total=len(batches), done=done)

    fit(task, schedule, alone(next(detector.parameters()).device), checkpoint=checkpoint, track=track)
    return float(task.loss)


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
