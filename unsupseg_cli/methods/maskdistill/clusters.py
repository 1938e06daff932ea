"""Masks -> masks with classes: k-means over the tokens of their crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor

from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.data.masks import to_layers
from unsupseg_cli.methods.interface import Inputs, Labeller, Masks
from unsupseg_cli.methods.maskdistill.config import ClustersOptions

_BATCH = 1000  # published code, cluster.py
_EXEMPLARS = 8


def whitened(tokens: Tensor) -> Tensor:
    """Return tokens (n, C) with each channel over its standard deviation, then of unit length."""
    spread = tokens.std(0, correction=0)
    return F.normalize(tokens / torch.where(spread > 0, spread, 1), dim=-1)


class MaskClusters(Labeller):
    """The masks as they are, each with the class of its crop; the background has class 0, where there is one."""

    options: ClustersOptions

    def __init__(self, options: ClustersOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        assert inputs.masks is not None
        assert inputs.regions is not None
        if inputs.regions.of_masks is None:
            raise UsageError(
                "The regions are not the crops of these masks; make them by `unsupseg extract --regions masks` and "
                "give both, by --regions and --pseudolabels (or --masks)."
            )
        self.masks, self.regions, self._rows_of = inputs.masks, inputs.regions, inputs.regions.of_masks
        self._classes = np.empty(0, np.int64)
        self._distances: NDArray[np.float32] = np.empty((0, 0), np.float32)

    def fit(self) -> dict[str, Any]:
        """Cluster the crops of the masks, and of the support set.

        Raises:
            UsageError: there are fewer crops than clusters.
            UnsupsegError: a token is NaN or infinite.
        """
        options, first = self.options, int(self.options.background)
        count = self.inputs.classes - first
        tokens = self.regions.rows(options.token).cpu()
        support = self.inputs.support
        together = tokens if support is None else torch.cat([tokens, support.rows(options.token).cpu()])
        self._check(together, count)
        points = (whitened(together) if options.whiten else F.normalize(together, dim=-1)).numpy()
        seed = seeds.stream(self.inputs.seed, "clusters") % 2**32
        if options.minibatch:
            kmeans = MiniBatchKMeans(count, n_init=options.restarts, batch_size=_BATCH, random_state=seed)
        else:
            kmeans = KMeans(count, n_init=options.restarts, random_state=seed)
        kmeans.fit(points)
        self._distances = kmeans.transform(points[: len(tokens)])
        self._classes = self._distances.argmin(1) + first
        sizes = np.bincount(kmeans.labels_, minlength=count)
        if single := int((sizes <= 1).sum()):
            self.inputs.reporter.warn(
                f"{single} of {count} clusters have at most one mask: try fewer --classes"
            )
        return {"crops": len(tokens), "support": len(together) - len(tokens), "single_clusters": single}

    def _check(self, tokens: Tensor, count: int) -> None:
        if count < 1:
            raise UsageError("1 class leaves no cluster beside the background; ask for more --classes.")
        if len(tokens) < count:
            raise UsageError(
                f"There are {len(tokens)} crops of masks for {count} clusters; ask for fewer --classes, or give "
                "--support."
            )
        if not bool(torch.isfinite(tokens).all()):
            raise UnsupsegError("A crop's token holds NaN or infinite values; extract the regions again.")

    def sizes(self) -> NDArray[np.int64]:
        """Return rows and columns of each view's masks, as they are read."""
        return np.array([labels.shape for labels in self.masks.labels], np.int64)

    def label(self, views: Sequence[int]) -> list[Masks]:
        """Return the masks of some views, as they are, with classes; -1 for a mask without a crop."""
        return [self._label(view) for view in views]

    def _label(self, view: int) -> Masks:
        assert self.masks.masks is not None
        masks = self.masks.masks(view)
        group = np.full(len(masks), VOID, np.int64)
        rows = self._rows_of(view)
        group[self.regions.tag[rows]] = self._classes[rows]
        area = masks.sum((1, 2)).astype(np.int64)
        return Masks(to_layers(masks, masks.shape[1:]), area, self.masks.scores[view], group)

    def exemplars(self) -> list[list[int]]:
        """Return the crops of each class that are nearest to its centre; the background has none."""
        nearest: list[list[int]] = [[]] if self.options.background else []
        for number, distances in enumerate(self._distances.T, start=len(nearest)):
            members = np.flatnonzero(self._classes == number)
            nearest.append(members[distances[members].argsort()][:_EXEMPLARS].tolist())
        return nearest
