"""Features -> one class per token: spectral clusters of a sample, and votes of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.clustering.spectral import (
    modularity,
    neighbours_of_others,
    spectral_embedding,
    to_affinity,
    vote,
)
from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.interface import Labeller, Masks
from unsupseg_cli.methods.spectral.config import PseudolabelOptions
from unsupseg_cli.training.tokens import draw_tokens

_OWN_IMAGE = 0.4  # share above which k-means was better (README.md)


class SpectralLabeller(Labeller):
    """Spectral clusters of a sample of the tokens, which votes on all others."""

    options: PseudolabelOptions

    def fit(self) -> dict[str, Any]:
        """Cluster several samples and keep the best; raises UsageError for hardly more tokens than classes."""
        samples = (self._cluster(draw) for draw in range(self.options.draws))
        best = max(samples, key=lambda sample: sample[0])
        value, self.sample, self.labels, same = best
        if same > _OWN_IMAGE:
            self.inputs.reporter.warn(
                f"{100 * same:.0f} % of the tokens' nearest ones lie in their own image: these features tell images "
                "apart rather than what they show; compare with --method kmeans, or take another --backbone or --layer"
            )
        return {"tokens": len(self.sample), "modularity": value, "same_image": same}

    def _cluster(self, draw: int) -> tuple[float, Tensor, Tensor, float]:
        """Return modularity, unit tokens and classes of a sample, and its share of nearest tokens of the same image."""
        options, inputs = self.options, self.inputs
        stream = partial(seeds.stream, inputs.seed, "spectral", draw)
        tokens, views = draw_tokens(inputs.features, options.sample, stream("sample"), inputs.reporter)
        if len(tokens) < inputs.classes + 2:
            raise UsageError(
                f"Spectral clustering into {inputs.classes} classes needs at least {inputs.classes + 2} tokens, found "
                f"{len(tokens)}: ask for fewer --classes, a larger --set sample, or extract features of more images."
            )
        unit = F.normalize(tokens, dim=-1)
        columns, cosines, same = neighbours_of_others(unit, views, options.neighbors, inputs.reporter)
        inputs.reporter.info(
            f"spectral: sample {draw + 1} of {options.draws}, {len(tokens):,} tokens, {inputs.classes} eigenvectors"
        )
        affinity = to_affinity(columns, cosines)
        result = spherical_kmeans(
            spectral_embedding(affinity, inputs.classes, stream("eigenvectors")),
            inputs.classes,
            restarts=options.restarts,
            iterations=options.iterations,
            seed=stream("kmeans"),
            reporter=inputs.reporter,
        )
        return modularity(affinity, result.labels), unit, result.labels.to(unit.device), same

    def label(self, views: Sequence[int]) -> list[Masks]:
        """Label every token of some views; a mask is the set of a view's tokens of one class."""
        return [self._label(tokens) for tokens in self.inputs.features.tokens(views)]

    def _label(self, tokens: Tensor) -> Masks:
        points = F.normalize(tokens, dim=-1).flatten(0, 1)
        shares = vote(points, self.sample, self.labels, self.inputs.classes, self.options.voters)
        best, classes = shares.view(*tokens.shape[:2], -1).max(-1)
        return Masks.of_classes(classes, best)
