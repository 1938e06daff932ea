"""Masks -> masks with classes: k-means over the tokens of what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from unsupseg_cli.clustering.euclidean import euclidean_kmeans
from unsupseg_cli.clustering.principal import whitened
from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.words import are, counted
from unsupseg_cli.data.masks import masked_means, to_layers
from unsupseg_cli.methods.interface import Inputs, Labeller, Masks, RegionSet
from unsupseg_cli.methods.maskdistill.config import ClustersOptions

_BATCH = 1000  # published code, cluster.py
_EXEMPLARS = 8
_VIEWS = 64  # at a time


class MaskClusters(Labeller):
    """The masks as they are, each with the class of what it shows; the background has class 0, where there is one."""

    options: ClustersOptions

    def __init__(self, options: ClustersOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        assert inputs.masks is not None
        self.masks = inputs.masks
        if options.token != "masked":
            assert inputs.regions is not None
            self.regions = inputs.regions
            if inputs.regions.of_masks is None:
                raise UsageError(
                    "The regions are not the crops of these masks; make them by `unsupseg extract --regions masks` and "
                    "give both, by --regions and --pseudolabels (or --masks)."
                )
        self._distances = np.empty((0, 0), np.float32)
        self._classes = np.empty(0, np.int64)

    def fit(self) -> dict[str, Any]:
        """Cluster the tokens of the masks, and of the support set.

        Raises:
            UsageError: there are fewer masks than clusters.
            UnsupsegError: a token is NaN or infinite.
        """
        options = self.options
        count, support = self.inputs.classes - int(options.background), None
        if options.token == "masked":
            self.regions, tokens = self._masked()
        else:
            support = self.inputs.support
            tokens = self.regions.rows(options.token, self.inputs.reporter).cpu()
        together = tokens
        if support is not None:
            together = torch.cat([tokens, support.rows(options.token, self.inputs.reporter).cpu()])
        _check(together, count)
        points = F.normalize(whitened(together) if options.whiten else together, dim=-1).numpy()
        self.inputs.reporter.info(
            f"k-means: {counted(len(points), 'mask')}, {count} centres, {options.restarts} runs"
        )
        kmeans = self._kmeans(points, count)
        self._take(kmeans.transform(points[: len(tokens)]))
        if single := int((np.bincount(kmeans.labels_, minlength=count) <= 1).sum()):
            self.inputs.reporter.warn(
                f"{single} of {count} clusters have at most one mask: try fewer --classes"
            )
        return {
            "mask_classes": count,
            "clustered": len(tokens),
            "support": len(together) - len(tokens),
            "single_clusters": single,
        }

    def learned(self) -> dict[str, Tensor]:
        """Return how far each mask is from each centre, (n, K)."""
        return {"distances": torch.from_numpy(np.ascontiguousarray(self._distances))}

    def restore(self, learned: Mapping[str, Tensor]) -> None:
        """Take the distances; of masked regions the masks are looked up again."""
        if self.options.token == "masked":
            self.regions, _ = self._masked()
        self._take(learned["distances"].numpy())

    def _take(self, distances: NDArray[np.float32]) -> None:
        self._distances = distances
        self._classes = distances.argmin(1) + int(self.options.background)

    def _kmeans(self, points: NDArray[np.float32], count: int) -> Any:
        """Return fitted k-means; mini-batches choose among their starts by a sample, and take seconds."""
        restarts, seed = self.options.restarts, seeds.stream(self.inputs.seed, "clusters") % 2**32
        if self.options.minibatch:
            mini = MiniBatchKMeans(count, n_init=restarts, batch_size=_BATCH, random_state=seed)
            return mini.fit(points)
        return euclidean_kmeans(points, count, restarts=restarts, seed=seed, reporter=self.inputs.reporter)

    def _masked(self) -> tuple[RegionSet, Tensor]:
        """Return the masks that cover something as regions, and the mean token under each, (n, C)."""
        assert self.masks.masks is not None
        assert self.masks.boxes is not None
        features, count = self.inputs.features, len(self.masks.labels)
        means, boxes = [], []
        starts = range(0, count, _VIEWS)
        for start in self.inputs.reporter.track(starts, "tokens of masks", total=len(starts)):
            views = range(start, min(start + _VIEWS, count))
            boxes += [self.masks.boxes(view) for view in views]
            shown = zip(views, features.tokens(views), strict=True)
            means += [masked_means(tokens, self.masks.masks(view)).cpu() for view, tokens in shown]
        sizes, box = [len(rows) for rows in boxes], np.concatenate(boxes)
        view, number = np.repeat(np.arange(count), sizes), np.concatenate([np.arange(size) for size in sizes])
        tokens = torch.cat(means)
        there = np.flatnonzero(tokens.any(1).numpy())
        view, number, box = view[there], number[there], box[there]

        def rows_of(wanted: int) -> NDArray[np.int64]:
            return np.arange(*np.searchsorted(view, (wanted, wanted + 1)))

        regions = RegionSet(features, view, view, number, box, of_masks=rows_of)
        return regions, tokens[torch.from_numpy(there)]

    def sizes(self) -> NDArray[np.int64]:
        """Return rows and columns of each view's masks, as they are read."""
        return np.array([labels.shape for labels in self.masks.labels], np.int64)

    def label(self, views: Sequence[int]) -> list[Masks]:
        """Return the masks of some views, as they are, with classes; -1 for a mask that shows nothing."""
        return [self._label(view) for view in views]

    def _label(self, view: int) -> Masks:
        assert self.masks.masks is not None
        assert self.regions.of_masks is not None
        masks = self.masks.masks(view)
        group = np.full(len(masks), VOID, np.int64)
        rows = self.regions.of_masks(view)
        group[self.regions.tag[rows]] = self._classes[rows]
        area = masks.sum((1, 2)).astype(np.int64)
        return Masks(to_layers(masks, masks.shape[1:]), area, self.masks.scores[view], group)

    def exemplars(self) -> list[list[int]]:
        """Return the masks of each class that are nearest to its centre; the background has none."""
        nearest: list[list[int]] = [[]] if self.options.background else []
        for number, distances in enumerate(self._distances.T, start=len(nearest)):
            members = np.flatnonzero(self._classes == number)
            nearest.append(members[distances[members].argsort()][:_EXEMPLARS].tolist())
        return nearest

    def exemplar_regions(self) -> RegionSet:
        """Return the masks as regions."""
        return self.regions


def _check(tokens: Tensor, count: int) -> None:
    """Raise UsageError where tokens (n, C) cannot be clustered so, UnsupsegError where they are no numbers."""
    if count < 1:
        raise UsageError("1 class leaves no cluster beside the background; ask for more --classes.")
    if len(tokens) < count:
        raise UsageError(
            f"There {are(len(tokens))} {counted(len(tokens), 'mask')} for {count} clusters; ask for fewer --classes, "
            "or for more masks."
        )
    if not bool(torch.isfinite(tokens).all()):
        raise UnsupsegError("The token of a mask holds NaN or infinite values; extract the features again.")
