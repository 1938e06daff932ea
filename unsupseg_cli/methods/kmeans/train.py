"""K prototypes by gradient descent on the mean cosine to the nearest one, several starts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.clustering.prototypes import Prototypes
from unsupseg_cli.clustering.spherical import kmeans_plus_plus
from unsupseg_cli.core import seeds
from unsupseg_cli.methods.interface import Inputs, TrainedHead, Trainer
from unsupseg_cli.methods.kmeans.config import TrainOptions
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.tokens import flat_batches, sample_tokens


class KMeansTrainer(Trainer):
    """Training of the k-means baseline (STEGO's cluster probe on the frozen features)."""

    options: TrainOptions
    explained = MappingProxyType(
        {
            "loss": "sum over all starts, of minus the cosine of token and centre: good if it falls, then stays",
            "best": "the start that is kept: minus the mean cosine of tokens and their centres, -1 at best",
            "worst": "the worst start: good if it comes close to the best, then starts do not matter",
        }
    )

    def __init__(self, options: TrainOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        self.steps, self.batch = options.steps, options.batch
        draw = seeds.stream(inputs.seed, "starts")
        sample = sample_tokens(inputs.features, options.sample, draw, inputs.reporter)
        unit = F.normalize(sample, dim=-1)
        starts = [
            kmeans_plus_plus(unit, inputs.classes, seed=seeds.stream(inputs.seed, "start", restart))
            for restart in inputs.reporter.track(range(options.restarts), "starts", total=options.restarts)
        ]
        centroids = inputs.masks.state.get("centroids") if inputs.masks else None
        self.warnings = []
        if centroids is not None and len(centroids) == inputs.classes:
            starts[0] = centroids.to(starts[0])
        elif centroids is not None:
            self.warnings.append(
                f"the pseudo-labels have {len(centroids)} centres, which start no training of {inputs.classes} classes"
            )
        self.module: nn.Module = Prototypes(torch.stack(starts)).to(inputs.device)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam with the probe's learning rate; the sets do not influence each other."""
        return torch.optim.Adam(self.module.parameters(), lr=self.options.lr)

    def weight(self, views: Sequence[int]) -> float:
        """Return the number of tokens: every one counts alike."""
        return float(self.inputs.features.grids[list(views)].prod(1).sum())

    def read(self, batch: Batch) -> list[Tensor]:
        """Read the tokens."""
        return self.inputs.features.tokens(batch.views)

    def losses(self, batch: Batch, read: list[Tensor]) -> dict[str, Tensor]:
        """Return the summed loss of all sets and the best one's."""
        tokens = torch.cat([view.reshape(-1, self.inputs.features.dim) for view in read])
        losses = self._prototypes.losses(F.normalize(tokens, dim=-1))
        return {"loss": losses.sum(), "best": losses.min(), "worst": losses.max()}

    @torch.no_grad()
    def finish(self) -> TrainedHead:
        """Keep the set with the lowest loss over all tokens."""
        total, count = torch.zeros(self.options.restarts, dtype=torch.float64), 0
        for tokens in flat_batches(
            self.inputs.features, reporter=self.inputs.reporter, description="judge starts"
        ):
            unit = F.normalize(tokens, dim=-1)
            total += self._prototypes.losses(unit).double().cpu() * len(tokens)
            count += len(tokens)
        losses = (total / count).tolist()
        best = min(range(len(losses)), key=losses.__getitem__)
        weight = F.normalize(self._prototypes.weight[best], dim=-1).detach().cpu().clone()
        figures: dict[str, Any] = {"losses": losses, "best_restart": best}
        classes, dim = weight.shape
        head = {"type": "cosine", "classes": classes, "dim": dim, "alpha": self.options.alpha}
        return TrainedHead(head, {"class_head.weight": weight}, figures=figures, warnings=self.warnings)

    @property
    def _prototypes(self) -> Prototypes:
        assert isinstance(self.module, Prototypes)
        return self.module
