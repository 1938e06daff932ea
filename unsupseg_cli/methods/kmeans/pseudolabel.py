"""Features -> one label per token: the nearest of K spherical k-means centres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core import seeds
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.methods.interface import Masks
from unsupseg_cli.methods.kmeans.config import PseudolabelConfig
from unsupseg_cli.training.tokens import TokenSource, sample_tokens


class Pseudolabeller:
    """Spherical k-means over all tokens of the collection.

    Raises:
        UsageError: more classes than tokens.
    """

    needs_images = False

    def __init__(self, config: PseudolabelConfig, classes: int, seed: int) -> None:
        self.config, self.classes, self.seed = config, classes, seed

    def fit(self, source: TokenSource, reporter: Reporter) -> dict[str, Any]:
        """Fit the centres on a sample of the tokens."""
        sample = sample_tokens(source, self.config.sample, seeds.stream(self.seed, "kmeans", "sample"))
        reporter.info(f"k-means: {len(sample):,} tokens, {self.classes} centres, {self.config.restarts} runs")
        result = spherical_kmeans(
            F.normalize(sample, dim=-1),
            self.classes,
            restarts=self.config.restarts,
            iterations=self.config.iterations,
            seed=seeds.stream(self.seed, "kmeans"),
        )
        self.centroids = result.centroids  # on the tokens' device
        return {"inertia": result.inertia, "inertias": list(result.inertias), "tokens": len(sample)}

    def label(self, tokens: Sequence[Tensor], images: Sequence[NDArray[np.uint8]] | None) -> list[Masks]:
        """Label every token of some views (h, w, C); a mask is the set of a view's tokens of one class."""
        return [self._label(view) for view in tokens]

    def _label(self, view: Tensor) -> Masks:
        similarity = F.normalize(view, dim=-1) @ self.centroids.T
        best, nearest = (one.cpu() for one in similarity.max(-1))
        groups, labels = np.unique(nearest.numpy(), return_inverse=True)
        labels = labels.reshape(nearest.shape)
        area = np.bincount(labels.ravel(), minlength=len(groups))
        score = np.bincount(labels.ravel(), weights=best.numpy().ravel(), minlength=len(groups)) / area
        return Masks(labels.astype(np.int16), area, score.astype(np.float32), groups)

    def figures(self) -> dict[str, Any]:
        """Return nothing: `fit` told it all."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return the centres (K, C)."""
        return {"centroids": self.centroids.cpu()}
