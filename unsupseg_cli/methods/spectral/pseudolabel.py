"""Features -> one class per token: clusters of the graph of a sample and votes of it, or centres of k-means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from torch import Tensor

from unsupseg_cli.clustering.diffusion import diffused_clusters
from unsupseg_cli.clustering.principal import whitened
from unsupseg_cli.clustering.spectral import (
    OWN_IMAGE,
    GraphClusters,
    neighbours_of_others,
    share_in_own_group,
    spectral_clusters,
    to_affinity,
    vote,
)
from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.words import are, counted
from unsupseg_cli.data.foreground import find_foreground
from unsupseg_cli.data.masks import masked_means
from unsupseg_cli.methods.interface import Inputs, Labeller, Masks
from unsupseg_cli.methods.spectral.config import PseudolabelOptions
from unsupseg_cli.training.tokens import draw_tokens

_KMEANS_SAMPLE = 200_000  # tokens: as `--method kmeans`
_NO_MASK = "the masks cover nothing; give others by --pseudolabels or --masks, or --set background=none."


@dataclass(frozen=True, eq=False)
class _Objects:
    """The masks of all views.

    ``means`` are those of their tokens (n, C), zero of a mask without any; ``sizes`` tell how many each view has, and
    ``covered``, (h, w) of each view, the number of the mask that most of a cell lies on.
    """

    means: Tensor
    sizes: list[int]
    covered: list[Tensor]

    @property
    def there(self) -> Tensor:
        """Whether a mask has tokens, (n,) bool."""
        return self.means.any(1)

    @property
    def count(self) -> int:
        """The masks that have tokens."""
        return int(self.there.sum())


@dataclass(frozen=True, eq=False)
class _Sample:
    """Tokens (n, C) of unit length, the view of each (n,), their graph, and seeds for each purpose."""

    tokens: Tensor
    views: Tensor
    affinity: csr_matrix
    seed: Callable[[str], int]


class SpectralLabeller(Labeller):
    """Clusters of a sample of the tokens, which votes on all others; class 0 where there is a background."""

    options: PseudolabelOptions

    def __init__(self, options: PseudolabelOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        self._foreground: list[Tensor] | None = None
        self._centroids: Tensor | None = None
        self._objects: list[Tensor] | None = None

    @property
    def _clusters(self) -> int:
        """Number of classes without the background."""
        return self.inputs.classes - (self._foreground is not None)

    def fit(self) -> dict[str, Any]:
        """Cluster several samples and keep the best; raises UsageError for hardly more tokens than classes."""
        figures = self._find_background()
        if self.options.clusters == "tokens":
            return figures | self._cluster_tokens()
        if self.options.clusters == "objects":
            return figures | self._cluster_objects(self._describe_objects())
        first = self._join(0)
        same = figures["same_image"] = share_in_own_group(first.tokens, first.views, first.seed("own image"))
        chosen, objects = self._choose(same)
        if objects is not None:
            return figures | self._cluster_objects(objects)
        return figures | self._cluster_samples(chosen, first)

    def _find_background(self) -> dict[str, Any]:
        """Settle what is background, by the masks given.

        Raises:
            UsageError: a background is asked for, and there is no class beside it, or no cell beside it.
        """
        if self.options.background == "none":
            return {}
        assert self.inputs.masks is not None
        foreground = find_foreground(self.inputs.masks.labels, self.inputs.features.grids)
        objects = foreground.objects and self.inputs.classes > 1
        if self.options.background == "auto":
            self.inputs.reporter.info(
                f"the masks cover {foreground.share:.2f} times as much of the images' border as of the images: "
                + ("objects, and class 0 is the background" if objects else "no background")
            )
        elif not foreground.anything or self.inputs.classes < 2:
            raise UsageError(
                "There is nothing beside the background: "
                + ("ask for at least --classes 2." if foreground.anything else _NO_MASK)
            )
        if objects or self.options.background == "outside":
            self._foreground = foreground.cells
        return {"share_at_border": foreground.share, "background": self._foreground is not None}

    def _draw(self, limit: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return tokens that are no background, and their views."""
        within = None
        if self._foreground is not None:
            within = torch.cat([cells.flatten() for cells in self._foreground])
        tokens, views = draw_tokens(self.inputs.features, limit, seed, self.inputs.reporter, within)
        if len(tokens) < self._clusters + 2:
            raise UsageError(
                f"Spectral clustering into {self._clusters} classes needs at least {self._clusters + 2} tokens, found "
                f"{len(tokens)}: ask for fewer --classes, a larger --set sample, or extract features of more images."
            )
        return F.normalize(tokens, dim=-1), views

    def _join(self, draw: int) -> _Sample:
        """Draw tokens, and join each with its nearest ones in other images."""
        options, reporter = self.options, self.inputs.reporter
        stream = partial(seeds.stream, self.inputs.seed, "spectral", draw)
        tokens, views = self._draw(options.sample, stream("sample"))
        reporter.info(
            f"spectral: sample {draw + 1} of {options.draws}, {len(tokens):,} tokens, {self._clusters} clusters"
        )
        columns, cosines, _ = neighbours_of_others(tokens, views, options.neighbors, reporter)
        return _Sample(tokens, views, to_affinity(columns, cosines), stream)

    def _choose(self, same_image: float) -> tuple[str, _Objects | None]:
        """Return what is clustered where tokens have a graph, and the masks if it is these; say why."""
        chosen, reporter = self.options.clusters, self.inputs.reporter
        if chosen == "diffused" or same_image <= OWN_IMAGE:
            return "diffused" if chosen == "diffused" else "graph", None
        told = f"the nearest token is of the same image for {100 * same_image:.0f} % of the tokens"
        if chosen == "graph":
            reporter.warn(
                f"{told}: these features tell images apart rather than what they show; compare with "
                "--set clusters=diffused, or take another --backbone or --layer"
            )
            return "graph", None
        objects = None if self._foreground is None else self._describe_objects()
        few = objects is not None and objects.count < self._clusters
        if objects is not None and not few:
            reporter.info(f"{told}: clusters are of k-means of the masks instead of the graph's")
            return "objects", objects
        why = f" (masks: {objects.count}, too few for {self._clusters} clusters)" if objects else ""
        reporter.info(
            f"{told}: clusters are of tokens averaged along the graph instead of its eigenvectors{why}"
        )
        return "diffused", None

    def _cluster_samples(self, chosen: str, first: _Sample) -> dict[str, Any]:
        """Cluster several samples, the first of them given; keep the clusters of greatest modularity."""
        samples = (self._join(draw) if draw else first for draw in range(self.options.draws))
        found = ((sample, self._cluster_sample(chosen, sample)) for sample in samples)
        best, clusters = max(found, key=lambda one: one[1].modularity)
        self._sample, self._labels = best.tokens, clusters.labels.to(best.tokens.device)
        figures = {"tokens": len(self._sample), "modularity": clusters.modularity, "clusters": chosen}
        return figures | ({"steps": clusters.steps} if clusters.steps else {})

    def _cluster_sample(self, chosen: str, sample: _Sample) -> GraphClusters:
        counts = {name: getattr(self.options, name) for name in ("restarts", "iterations")}
        graph, k, reporter = sample.affinity, self._clusters, self.inputs.reporter
        if chosen == "graph":
            return spectral_clusters(graph, k, **counts, seed=sample.seed, reporter=reporter)
        seed = sample.seed("kmeans")
        return diffused_clusters(sample.tokens, graph, k, **counts, seed=seed, reporter=reporter)

    def _cluster_tokens(self) -> dict[str, Any]:
        """Fit centres of k-means on the tokens."""
        tokens, _ = self._draw(_KMEANS_SAMPLE, seeds.stream(self.inputs.seed, "kmeans", "sample"))
        counts = {name: getattr(self.options, name) for name in ("restarts", "iterations")}
        seed, reporter = seeds.stream(self.inputs.seed, "kmeans"), self.inputs.reporter
        result = spherical_kmeans(tokens, self._clusters, **counts, seed=seed, reporter=reporter)
        self._centroids = result.centroids
        return {"tokens": len(tokens), "inertia": result.inertia, "clusters": "tokens"}

    def _describe_objects(self) -> _Objects:
        """Return what is known of each mask; raises UsageError where there is no background."""
        masks, features = self.inputs.masks, self.inputs.features
        if masks is None or self._foreground is None:
            raise UsageError(
                "clusters=objects takes what the masks leave out as the background, and there is none: give masks of "
                "objects by --pseudolabels or --masks, and --set background=outside."
            )
        means, covered = [], []
        for view, grid in enumerate(features.grids.tolist()):
            of_view = masks.whole(view)
            means.append(masked_means(features.tokens([view])[0], of_view))
            area = F.interpolate(torch.from_numpy(of_view)[None].float(), grid, mode="area")
            covered.append(area[0].argmax(0) if len(of_view) else torch.zeros(grid, dtype=torch.long))
        return _Objects(torch.cat(means), [len(mean) for mean in means], covered)

    def _cluster_objects(self, objects: _Objects) -> dict[str, Any]:
        """Cluster the masks, by the whitened mean of their tokens, and give each cell on one its class.

        Raises:
            UsageError: there are fewer masks than classes.
        """
        assert self._foreground is not None
        if objects.count < self._clusters:
            masks = f"{counted(objects.count, 'mask')} {are(objects.count)}"
            raise UsageError(
                f"{masks} fewer than {self._clusters} classes: ask for fewer --classes, or give other masks."
            )
        points, there = objects.means, objects.there
        counts = {name: getattr(self.options, name) for name in ("restarts", "iterations")}
        seed, reporter = seeds.stream(self.inputs.seed, "kmeans"), self.inputs.reporter
        units = F.normalize(whitened(points[there]), dim=-1)
        result = spherical_kmeans(units, self._clusters, **counts, seed=seed, reporter=reporter)
        classes = torch.zeros(len(points), dtype=torch.long, device=points.device)
        classes[there] = result.labels + 1
        self._objects = [
            of_masks[number] * cells if len(of_masks) else number
            for of_masks, number, cells in zip(
                torch.split(classes.cpu(), objects.sizes), objects.covered, self._foreground, strict=True
            )
        ]
        return {"masks": objects.count, "inertia": result.inertia, "clusters": "objects"}

    def learned(self) -> dict[str, Tensor]:
        """Return the centres, or the sample with its clusters, or the class of each cell; and the foreground."""
        if self._objects is not None:
            return {"classes": torch.cat([classes.flatten() for classes in self._objects])}
        if self._centroids is not None:
            learned = {"centroids": self._centroids}
        else:
            learned = {"sample": self._sample, "labels": self._labels}
        if self._foreground is not None:
            learned["foreground"] = torch.cat([cells.flatten() for cells in self._foreground])
        return {name: values.cpu() for name, values in learned.items()}

    def restore(self, learned: Mapping[str, Tensor]) -> None:
        """Take what `learned` returned."""
        if "classes" in learned:
            self._objects = self._by_view(learned["classes"])
            return
        here = {name: values.to(self.inputs.device) for name, values in learned.items()}
        self._centroids = here.get("centroids")
        if self._centroids is None:
            self._sample, self._labels = here["sample"], here["labels"]
        if "foreground" in learned:
            self._foreground = self._by_view(learned["foreground"])

    def _by_view(self, cells: Tensor) -> list[Tensor]:
        """Return what is told of all cells, view by view, each (h, w)."""
        grids = self.inputs.features.grids
        parts = torch.split(cells, grids.prod(1).tolist())
        return [part.view(*grid) for part, grid in zip(parts, grids.tolist(), strict=True)]

    def label(self, views: Sequence[int]) -> list[Masks]:
        """Label every token of some views; a mask is the set of a view's tokens of one class."""
        if self._objects is not None:
            return [
                Masks.of_classes(self._objects[view], torch.ones(self._objects[view].shape)) for view in views
            ]
        tokens = self.inputs.features.tokens(views)
        return [self._label(view, batch) for view, batch in zip(views, tokens, strict=True)]

    def _label(self, view: int, tokens: Tensor) -> Masks:
        points = F.normalize(tokens, dim=-1)
        if self._centroids is not None:
            shares = points @ self._centroids.T
        else:
            flat, voters = points.flatten(0, 1), self.options.voters
            shares = vote(flat, self._sample, self._labels, self._clusters, voters)
        best, classes = shares.view(*tokens.shape[:2], -1).max(-1)
        if self._foreground is not None:
            covered = self._foreground[view].to(classes.device)
            best, classes = best.where(covered, torch.ones_like(best)), (classes + 1) * covered
        return Masks.of_classes(classes, best)
