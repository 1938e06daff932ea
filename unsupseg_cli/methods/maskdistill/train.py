"""Masks with classes -> a dense network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.core import seeds
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.methods.interface import Inputs, TrainedNetwork, Trainer
from unsupseg_cli.methods.maskdistill.background import warn_of_background
from unsupseg_cli.methods.maskdistill.config import TrainOptions
from unsupseg_cli.methods.maskdistill.objective import hard_pixel_loss
from unsupseg_cli.models.decoders import ConvolutionDecoder
from unsupseg_cli.models.deeplab import DeepLab, load_resnet
from unsupseg_cli.models.dense import resize_maps
from unsupseg_cli.training.batch import Batch


class MaskDistillTrainer(Trainer):
    """Hard-pixel cross-entropy on the classes of masks.

    The hardest pixels are chosen in each image, so that images do not depend on each other (the published code takes
    those of the whole batch).
    """

    options: TrainOptions
    advice = "lower --set lr, or look for NaN in the features (`unsupseg verify`)"

    def __init__(self, options: TrainOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        views = len(inputs.features.grids)
        self.batch = min(options.batch, views)
        self.steps = options.epochs * (views // self.batch)
        assert inputs.masks is not None
        inputs.masks.require_classes(inputs.classes)
        if options.background:
            warn_of_background(inputs.masks, inputs.reporter, "learnt as what no mask covers is")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.stream(inputs.seed, "network"))
            self.network = self._build()
        self.module: nn.Module = self.network.to(inputs.device)

    def _build(self) -> ConvolutionDecoder | DeepLab:
        classes = self.inputs.classes
        self.description: dict[str, Any] = {"type": "deeplabv3-resnet50", "classes": classes}
        if self.options.arch == "decoder":
            fields = {"dim": self.inputs.features.dim, "width": self.options.width}
            self.description = {"type": "maskdistill-decoder", "classes": classes, **fields}
            return ConvolutionDecoder(classes, **fields)
        network = DeepLab(classes)
        load_resnet(network.backbone, self.options.resnet)
        network.freeze()
        return network

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over the decoder; SGD over what is not frozen of DeepLab (published: momentum .9, decay 1e-4)."""
        learnt = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        if self.options.arch == "decoder":
            return torch.optim.Adam(learnt, lr=self.options.lr)
        return torch.optim.SGD(learnt, lr=self.options.lr, momentum=0.9, weight_decay=1e-4)

    def rate(self, progress: float) -> float | None:
        """Return a tenth near the end."""
        return 0.1 if progress >= self.options.drop_at else 1.0

    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Keep the statistics of the ResNet as they are: the loop puts modules into training mode."""
        if isinstance(self.network, DeepLab):
            self.network.backbone.eval()

    def read(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Read tokens (h, w, C) or the image (H, W, 3), and the classes, of each view."""
        assert self.inputs.masks is not None
        views, device = batch.views, self.inputs.device
        if self.options.arch == "decoder":
            shown = self.inputs.features.tokens(views)
        else:
            shown = [torch.tensor(image, device=device) for image in self.inputs.images(views)]
        classes = [self._classes(view).to(device) for view in views]
        return list(zip(shown, classes, strict=True))

    def _classes(self, view: int) -> Tensor:
        """Return the class of each cell or pixel, (h, w); of no mask 0 with background, else -1."""
        assert self.inputs.masks is not None
        masks = self.inputs.masks
        classes = torch.from_numpy(masks.classes(view).astype(np.int64))
        if self.options.background:
            classes[torch.from_numpy(masks.labels[view] == VOID)] = 0
        return classes

    def losses(self, batch: Batch, read: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return the mean over views of the loss of their hardest pixels."""
        losses = []
        for shown, classes in read:
            height, width = classes.shape
            scores = resize_maps(self._scores(shown), (height, width))[0]
            of_all = self.options.hard_of == "all"
            losses.append(hard_pixel_loss(scores, classes, self.options.hard_share, of_all))
        return {"loss": torch.stack(losses).mean()}

    def _scores(self, shown: Tensor) -> Tensor:
        """Return scores (1, K, h, w) of one view."""
        if isinstance(self.network, ConvolutionDecoder):
            scores: Tensor = self.network({"patch": shown[None]})
            return scores
        rows, columns = (-side % self.network.multiple for side in shown.shape[:2])
        pixels = self.network.image_arrays(shown[None])["pixels"]
        padded = self.network({"pixels": F.pad(pixels, (0, columns, 0, rows), mode="replicate")})
        padded = resize_maps(padded, (shown.shape[0] + rows, shown.shape[1] + columns))
        return padded[..., : shown.shape[0], : shown.shape[1]]

    def finish(self) -> TrainedNetwork:
        """Return the last state."""
        return TrainedNetwork(self.description, self.network.state_dict())
