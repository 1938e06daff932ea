"""A detector that learns the masks of a labeller's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.words import counted
from unsupseg_cli.data.masks import resized
from unsupseg_cli.methods.interface import Inputs
from unsupseg_cli.methods.maskdistill.config import FilterOptions
from unsupseg_cli.training.detector import Detections, Image, build_detector, detect, train_detector


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
        views, numbers = self._learning()
        if not views:
            raise UsageError("There is no mask that a detector could learn; give other masks.")
        if left := sum(int((group == VOID).sum()) for group in self._groups) * (not self._without):
            inputs.reporter.warn(f"the detector does not learn {counted(left, 'mask')} without a class")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.stream(inputs.seed, "detector"))
            self._network = self._build(views, numbers)
            loss = train_detector(
                self._network,
                views,
                self._learnt,
                epochs=options.detector_epochs,
                batch=options.detector_batch,
                lr=options.detector_lr,
                seed=inputs.seed,
                reporter=inputs.reporter,
                checkpoint=inputs.checkpoint,
            )
        return {"detector_views": len(views), "detector_loss": loss}

    def learned(self) -> dict[str, Tensor]:
        """Return the weights of the detector."""
        return {name: values.cpu() for name, values in self._network.state_dict().items()}

    def restore(self, learned: Mapping[str, Tensor]) -> None:
        """Take the weights of a detector that has learned the same masks."""
        self._network = self._build(*self._learning())
        self._network.load_state_dict(dict(learned))

    def _learning(self) -> tuple[list[int], list[NDArray[np.int64]]]:
        """Return the views that it learns, and what it calls the masks of every view."""
        numbers = [self._numbers(group) for group in self._groups]
        return [view for view, number in enumerate(numbers) if (number > 0).any()], numbers

    def _build(self, views: list[int], numbers: list[NDArray[np.int64]]) -> nn.Module:
        side = min(self._inputs.images(views[:1])[0].shape[:2])
        classes = int(max(numbers[view].max() for view in views))
        return build_detector(classes, self._options.resnet, side).to(self._inputs.device)

    def __call__(self, image: Image) -> Detections:
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
