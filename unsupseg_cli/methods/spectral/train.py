"""A linear classifier of tokens by cross-entropy on the classes of pseudo-labels."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.clustering.prototypes import temperature
from unsupseg_cli.core import seeds
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.methods.interface import Inputs, TrainedHead, Trainer
from unsupseg_cli.methods.spectral.config import TrainOptions
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.tokens import draw_tokens

_JUDGED = 20_000  # tokens


class LinearTrainer(Trainer):
    """Cross-entropy of a linear head on tokens whose masks have classes; other tokens take no part."""

    options: TrainOptions
    explained = MappingProxyType(
        {"loss": "cross-entropy of the classes of the pseudo-labels: good if it falls, then stays"}
    )

    def __init__(self, options: TrainOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        assert inputs.masks is not None
        inputs.masks.require_classes(inputs.classes)
        self.steps, self.batch = options.steps, options.batch
        first = inputs.features.tokens(range(min(options.batch, len(inputs.features.grids))))
        length = torch.cat([tokens.flatten(0, 1).norm(dim=-1) for tokens in first]).mean()
        self._scale = inputs.features.dim**0.5 / float(length.clamp_min(1e-6))
        self.module: nn.Module = nn.Linear(inputs.features.dim, inputs.classes).to(inputs.device)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seeds.stream(inputs.seed, "head"))
            draws = torch.randn(self._head.weight.shape, generator=generator)
            self._head.weight.copy_(0.01 * draws)
            self._head.bias.zero_()

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW, whose learning rate falls to 0."""
        return torch.optim.AdamW(
            self.module.parameters(), lr=self.options.lr, weight_decay=self.options.decay
        )

    def rate(self, progress: float) -> float | None:
        """Return what is left of the run."""
        return 1 - progress

    def weight(self, views: Sequence[int]) -> float:
        """Return the number of tokens with a class: every one counts alike."""
        return float(sum((self._classes(view) != VOID).sum() for view in views))

    def _classes(self, view: int) -> Tensor:
        """Return the class at the middle of each token of a view, (h, w), -1 where there is none."""
        assert self.inputs.masks is not None
        classes, grid = torch.from_numpy(self.inputs.masks.classes(view)), self.inputs.features.grids[view]
        if classes.shape == tuple(grid):
            return classes
        rows, columns = (
            ((torch.arange(cells) + 0.5) * pixels / cells).long()
            for cells, pixels in zip(map(int, grid), classes.shape, strict=True)
        )
        return classes[rows[:, None], columns]

    def read(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Read tokens (h, w, C) and classes (h, w) of each view."""
        classes = [self._classes(view).to(self.inputs.device) for view in batch.views]
        return list(zip(self.inputs.features.tokens(batch.views), classes, strict=True))

    def losses(self, batch: Batch, read: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return the mean cross-entropy of the tokens with a class."""
        tokens = torch.cat([view.flatten(0, 1) for view, _ in read])
        classes = torch.cat([view.flatten() for _, view in read])
        total = F.cross_entropy(
            self.module(tokens * self._scale), classes, ignore_index=VOID, reduction="sum"
        )
        return {"loss": total / (classes != VOID).sum().clamp_min(1)}

    @torch.no_grad()
    def finish(self) -> TrainedHead:
        """Return the head of the last step, for tokens of their own length, with its scores softened."""
        factor = self._softening()
        weight, bias = factor * self._scale * self._head.weight, factor * self._head.bias
        classes, dim = weight.shape
        tensors = {"class_head.weight": weight.cpu(), "class_head.bias": bias.cpu()}
        return TrainedHead({"type": "linear", "classes": classes, "dim": dim}, tensors)

    def _softening(self) -> float:
        """Return the factor, at most 1, that brings the mean probability of the winning class to what is asked for."""
        draw = seeds.stream(self.inputs.seed, "confidence")
        tokens, _ = draw_tokens(self.inputs.features, _JUDGED, draw, self.inputs.reporter)
        scores = self.module(tokens * self._scale)
        chance = 1 / self.inputs.classes
        return 1 / max(1.0, temperature(scores, chance + self.options.confidence * (1 - chance)))

    @property
    def _head(self) -> nn.Linear:
        assert isinstance(self.module, nn.Linear)
        return self.module
