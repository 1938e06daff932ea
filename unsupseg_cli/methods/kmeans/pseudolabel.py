"""Features -> one label per token: the nearest of K spherical k-means centres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core import seeds
from unsupseg_cli.methods.interface import Labeller, Masks
from unsupseg_cli.methods.kmeans.config import PseudolabelOptions
from unsupseg_cli.training.all_tokens import kmeans_of_all_tokens
from unsupseg_cli.training.tokens import sample_tokens


class KMeansLabeller(Labeller):
    """Spherical k-means over all tokens of the collection."""

    options: PseudolabelOptions

    @property
    def fits_together(self) -> bool:
        """Whether several processes share the passes over all tokens."""
        return self.options.sample == "all"

    def fit(self) -> dict[str, Any]:
        """Fit the centres on a sample of the tokens, or on all; raises UsageError for more classes than tokens."""
        options, inputs = self.options, self.inputs
        if options.sample == "all":
            return self._fit_all()
        draw = seeds.stream(inputs.seed, "kmeans", "sample")
        sample = sample_tokens(inputs.features, options.sample, draw, inputs.reporter)
        inputs.reporter.info(
            f"k-means: {len(sample):,} tokens, {inputs.classes} centres, {options.restarts} runs"
        )
        F.normalize(sample, dim=-1, out=sample)  # large, and of no other use
        result = spherical_kmeans(
            sample,
            inputs.classes,
            restarts=options.restarts,
            iterations=options.iterations,
            seed=seeds.stream(inputs.seed, "kmeans"),
            reporter=inputs.reporter,
        )
        self.centroids = result.centroids  # on the tokens' device
        return {"inertia": result.inertia, "inertias": list(result.inertias), "tokens": len(sample)}

    def _fit_all(self) -> dict[str, Any]:
        options, inputs = self.options, self.inputs
        result = kmeans_of_all_tokens(
            inputs.features,
            inputs.classes,
            inputs.parts,
            restarts=options.restarts,
            iterations=options.iterations,
            seed=seeds.stream(inputs.seed, "kmeans"),
            device=inputs.device,
            reporter=inputs.reporter,
        )
        self.centroids = result.centroids.to(inputs.device)
        inputs.reporter.info(f"k-means: {result.passes} passes over {result.tokens:,} tokens")
        figures = {"tokens": result.tokens, "passes": result.passes}
        return {"inertia": result.inertia, "inertias": list(result.inertias), **figures}

    def learned(self) -> dict[str, Tensor]:
        """Return the centres (K, C)."""
        return {"centroids": self.centroids.cpu()}

    def restore(self, learned: Mapping[str, Tensor]) -> None:
        """Take the centres."""
        self.centroids = learned["centroids"].to(self.inputs.device)

    def label(self, views: Sequence[int]) -> list[Masks]:
        """Label every token of some views; a mask is the set of a view's tokens of one class."""
        return [self._label(tokens) for tokens in self.inputs.features.tokens(views)]

    def _label(self, tokens: Tensor) -> Masks:
        similarity = F.normalize(tokens, dim=-1) @ self.centroids.T
        best, nearest = similarity.max(-1)
        return Masks.of_classes(nearest, best)

    def state(self) -> dict[str, Tensor]:
        """Return the centres (K, C)."""
        return self.learned()
