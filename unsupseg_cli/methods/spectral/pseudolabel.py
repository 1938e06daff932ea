"""Features -> one class per token: spectral clusters of a sample, and votes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.clustering.spectral import neighbours_of_others, spectral_embedding, vote
from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.interface import Labeller, Masks
from unsupseg_cli.methods.spectral.config import PseudolabelOptions
from unsupseg_cli.training.tokens import draw_tokens


class SpectralLabeller(Labeller):
    """Spectral clusters of a sample of the tokens, which votes on all others."""

    options: PseudolabelOptions

    def fit(self) -> dict[str, Any]:
        """Cluster the sample; raises UsageError for hardly more tokens than classes."""
        options, inputs = self.options, self.inputs
        draw = seeds.stream(inputs.seed, "spectral", "sample")
        tokens, views = draw_tokens(inputs.features, options.sample, draw, inputs.reporter)
        if len(tokens) < inputs.classes + 2:
            raise UsageError(
                f"Spectral clustering into {inputs.classes} classes needs at least {inputs.classes + 2} tokens, found "
                f"{len(tokens)}: ask for fewer --classes, a larger --set sample, or extract features of more images."
            )
        self.sample = F.normalize(tokens, dim=-1)
        columns, cosines, same = neighbours_of_others(self.sample, views, options.neighbors, inputs.reporter)
        inputs.reporter.info(f"spectral: {len(tokens):,} tokens, {inputs.classes} eigenvectors")
        embedding = spectral_embedding(
            columns, cosines, inputs.classes, seeds.stream(inputs.seed, "eigenvectors")
        )
        result = spherical_kmeans(
            embedding,
            inputs.classes,
            restarts=options.restarts,
            iterations=options.iterations,
            seed=seeds.stream(inputs.seed, "spectral"),
            reporter=inputs.reporter,
        )
        self.labels = result.labels.to(self.sample.device)
        return {"tokens": len(tokens), "inertia": result.inertia, "same_image": same}

    def label(self, views: Sequence[int]) -> list[Masks]:
        """Label every token of some views; a mask is the set of a view's tokens of one class."""
        return [self._label(tokens) for tokens in self.inputs.features.tokens(views)]

    def _label(self, tokens: Tensor) -> Masks:
        points = F.normalize(tokens, dim=-1).flatten(0, 1)
        shares = vote(points, self.sample, self.labels, self.inputs.classes, self.options.voters)
        best, classes = shares.view(*tokens.shape[:2], -1).max(-1)
        return Masks.of_classes(classes, best)
