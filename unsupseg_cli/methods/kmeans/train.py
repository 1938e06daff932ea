"""K prototypes by gradient descent on the mean cosine to the nearest one, several starts side by side."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.clustering.prototypes import Prototypes
from unsupseg_cli.clustering.spherical import kmeans_plus_plus
from unsupseg_cli.core import seeds
from unsupseg_cli.methods.interface import PseudolabelSet, TrainedHead
from unsupseg_cli.methods.kmeans.config import TrainConfig
from unsupseg_cli.training.tokens import TokenSource, flat_batches, sample_tokens


class Task:
    """Training of the k-means baseline (STEGO's cluster probe on the frozen features)."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        source: TokenSource,
        pseudolabels: PseudolabelSet | None,
        classes: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config, self.source, self.device = config, source, device
        self.steps, self.batch = config.steps, config.batch
        sample = F.normalize(sample_tokens(source, config.sample, seeds.stream(seed, "starts")), dim=-1)
        starts = [
            kmeans_plus_plus(sample, classes, seed=seeds.stream(seed, "start", restart))
            for restart in range(config.restarts)
        ]
        if pseudolabels is not None and len(pseudolabels.state.get("centroids", ())) == classes:
            starts[0] = pseudolabels.state["centroids"].to(starts[0])
        self.module: nn.Module = Prototypes(torch.stack(starts))

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam with the probe's learning rate; the sets do not influence each other."""
        return torch.optim.Adam(self.module.parameters(), lr=self.config.lr)

    def losses(self, views: list[int], step: int) -> dict[str, Tensor]:
        """Return the summed loss of all sets and the best one's."""
        tokens = torch.cat([view.reshape(-1, self.source.dim) for view in self.source.tokens(views)])
        each = self._prototypes.losses(F.normalize(tokens.to(self.device), dim=-1))
        return {"loss": each.sum(), "best": each.min(), "worst": each.max()}

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    @torch.no_grad()
    def finish(self) -> TrainedHead:
        """Keep the set with the lowest loss over all tokens."""
        total, count = torch.zeros(self.config.restarts, dtype=torch.float64), 0
        for tokens in flat_batches(self.source):
            unit = F.normalize(tokens.to(self.device), dim=-1)
            total += self._prototypes.losses(unit).double().cpu() * len(tokens)
            count += len(tokens)
        losses = (total / count).tolist()
        best = min(range(len(losses)), key=losses.__getitem__)
        weight = F.normalize(self._prototypes.weight[best], dim=-1).detach().cpu().clone()
        figures: dict[str, Any] = {"losses": losses, "best_restart": best}
        classes, dim = weight.shape
        head = {"type": "cosine", "classes": classes, "dim": dim, "alpha": self.config.alpha}
        return TrainedHead(head, {"class_head.weight": weight}, figures=figures)

    @property
    def _prototypes(self) -> Prototypes:
        assert isinstance(self.module, Prototypes)
        return self.module
