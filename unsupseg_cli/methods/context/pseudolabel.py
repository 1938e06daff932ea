"""Pyramid semantic guidance: classes of patches, sharpened by the views of a pyramid and what the collection holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.clustering.prototypes import temperature
from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.views import cell_shares
from unsupseg_cli.methods.context.config import FINE, PseudolabelOptions
from unsupseg_cli.methods.context.guidance import align, guide, pack, spread
from unsupseg_cli.methods.interface import Inputs, Labeller, Masks, RegionSet
from unsupseg_cli.models.boxes import place_maps
from unsupseg_cli.training.tokens import sample_tokens

_VIEWS_OF_A_CLUSTER = 4  # at least, in the mean
_EXEMPLARS = 8


@dataclass(frozen=True)
class Level:
    """The holistic clusters of a level of the pyramid.

    ``rows`` are its regions, ``prior`` (M, K) the classes that each region's clusters hold.
    """

    rows: NDArray[np.int64]
    prior: Tensor


class ContextLabeller(Labeller):
    """A map of the classes in every view, and its highest as label map, on a grid twice as fine as the tokens'."""

    options: PseudolabelOptions

    def __init__(self, options: PseudolabelOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        assert inputs.regions is not None
        self.regions = inputs.regions
        self.rows = _rows_of_views(self.regions, inputs.features.grids, bool(options.views))
        self.finest = int(self.regions.tag.max())
        self.levels: list[Level] = []

    def fit(self) -> dict[str, Any]:
        """Cluster patches into the classes and each level's holistic tokens, which are aligned to the classes."""
        options, inputs = self.options, self.inputs
        draw = seeds.stream(inputs.seed, "kmeans", "sample")
        sample = sample_tokens(inputs.features, options.sample, draw, inputs.reporter)
        inputs.reporter.info(
            f"patches: {len(sample):,} tokens, {inputs.classes} centres, {options.restarts} runs"
        )
        sample = F.normalize(sample, dim=-1)
        result = self._cluster(sample, inputs.classes, "kmeans")
        self.centroids = result.centroids
        cosines = sample @ self.centroids.T
        self.temperature = temperature(cosines, options.confidence)
        self.shares = (cosines / self.temperature).softmax(1).mean(0)
        self.content, small = self._content()
        figures: dict[str, Any] = {
            "inertia": result.inertia,
            "inertias": list(result.inertias),
            "tokens": len(sample),
            "temperature": self.temperature,
            "small_images": small,
        }
        if small:
            inputs.reporter.info(
                f"{small} of {len(self.rows)} images are so small that a view of level {self.finest} shows less than a "
                "patch of them: lower --levels of `extract --regions pyramid`, or raise --size of the features"
            )
        if len(self.rows) == 1:
            inputs.reporter.info("one image: there is no context of others, only that within it")
        if options.holistic:
            figures |= self._fit_levels()
        return figures

    def learned(self) -> dict[str, Tensor]:
        """Return the classes, what each region holds of them, and what each level says about them."""
        learned = {
            "centroids": self.centroids,
            "temperature": torch.tensor(self.temperature, dtype=torch.float64),
            "shares": self.shares,
            "content": self.content,
            **{f"prior-{number}": level.prior for number, level in enumerate(self.levels)},
        }
        return {name: values.cpu() for name, values in learned.items()}

    def restore(self, learned: Mapping[str, Tensor]) -> None:
        """Take what `learned` returned."""
        here = {name: values.to(self.inputs.device) for name, values in learned.items()}
        self.centroids, self.shares, self.content = (
            here[name] for name in ("centroids", "shares", "content")
        )
        self.temperature = float(learned["temperature"])
        self.levels = [
            Level(np.flatnonzero(self.regions.tag == level), here[f"prior-{level}"])
            for level in range(self.finest + 1)
            if self.options.holistic
        ]

    def _fit_levels(self) -> dict[str, Any]:
        """Cluster and align the holistic tokens of each level."""
        tokens = F.normalize(self.regions.rows("cls", self.inputs.reporter), dim=-1).to(self.inputs.device)
        figures: dict[str, Any] = {"holistic_clusters": [], "context_bits": []}
        for level in range(self.finest + 1):
            rows = np.flatnonzero(self.regions.tag == level)
            wanted = round(self.options.clusters * self.inputs.classes)
            count = max(1, min(wanted, len(rows) // _VIEWS_OF_A_CLUSTER))
            result = self._cluster(tokens[rows], count, f"level-{level}")
            cosines = tokens[rows] @ result.centroids.T
            holistic = (cosines / temperature(cosines, self.options.confidence)).softmax(1)
            prior = holistic @ align(holistic, self.content[rows])
            self.levels.append(Level(rows, prior))
            figures["holistic_clusters"].append(count)
            bits = (prior * (prior.clamp_min(1e-6) / self.shares).log2()).sum(1).mean()
            figures["context_bits"].append(float(bits))
        known = ", ".join(f"{bits:.2f}" for bits in figures["context_bits"])
        self.inputs.reporter.info(
            f"levels 0 to {self.finest}: holistic clusters tell {known} bits about the classes"
        )
        return figures

    def _cluster(self, tokens: Tensor, count: int, name: str) -> Any:
        options = self.options
        return spherical_kmeans(
            tokens,
            count,
            restarts=options.restarts,
            iterations=options.iterations,
            seed=seeds.stream(self.inputs.seed, name),
            reporter=self.inputs.reporter,
        )

    def _content(self) -> tuple[Tensor, int]:
        """Return the shares of the classes among the patches of each region, (R, K).

        And of how many views a region shows less than a patch either way.
        """
        content = torch.zeros(len(self.regions), self.inputs.classes, device=self.inputs.device)
        small = 0
        for view, rows in enumerate(self.rows):
            probabilities, boxes = self._patches(view).softmax(0), self._shown(rows)
            height, width = probabilities.shape[1:]
            small += bool(((boxes[:, 2:] - boxes[:, :2]) * [width, height] < 1).any())
            weights = self._covered(rows, (height, width))
            inside = torch.einsum("khw,mhw->mk", probabilities, weights)
            content[rows] = inside / weights.sum((1, 2))[:, None].clamp_min(1e-6)
        return content, small

    def _patches(self, view: int) -> Tensor:
        """Return what the patches of a view say, cosines over the temperature, (K, h, w)."""
        return self._scores(self.inputs.features.tokens([view])[0][None])[0]

    def _scores(self, tokens: Tensor) -> Tensor:
        """Return cosines over the temperature (B, K, h, w) of tokens (B, h, w, C)."""
        cosines: Tensor = F.normalize(tokens, dim=-1) @ self.centroids.T
        return cosines.movedim(-1, 1) / self.temperature

    def _shown(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        assert self.regions.shown is not None
        return self.regions.shown(rows)

    def _covered(self, rows: NDArray[np.int64], grid: tuple[int, int]) -> Tensor:
        """Return how much of each cell of a view's grid lies in each of some regions, (M, h, w) in [0, 1]."""
        boxes = self._shown(rows).astype(np.float32) * np.array([grid[1], grid[0]] * 2, np.float32)
        return torch.from_numpy(cell_shares(boxes, grid)).to(self.inputs.device)

    def label(self, views: Sequence[int]) -> list[Masks]:
        """Return a mask for each class that is highest somewhere, with the guidance as arrays."""
        return [self._label(view) for view in views]

    def _label(self, view: int) -> Masks:
        guidance = self.guidance(view)
        arrays = pack(guidance, self.options.top)
        return Masks.of_classes(guidance.argmax(0), guidance.amax(0), arrays)

    def guidance(self, view: int) -> Tensor:
        """Return the guidance of a view on the fine grid, (K, FINE h, FINE w)."""
        scores = F.interpolate(
            self._patches(view)[None], scale_factor=FINE, mode="bilinear", align_corners=False
        )
        grid = (int(scores.shape[2]), int(scores.shape[3]))
        if self.options.views:
            scores = self._with_views(scores, view, grid)
        priors = [self._prior(level, view, grid) for level in self.levels]
        return guide(
            scores[0].softmax(0),
            torch.stack(priors) if priors else scores[:0],
            self.shares,
            self.options.holistic,
        )

    def _with_views(self, scores: Tensor, view: int, grid: tuple[int, int]) -> Tensor:
        """Return the mean of the scores (1, K, h, w) and of those of the finest views that show a cell."""
        rows = self._of_level(view, self.finest)
        tokens = torch.stack(self.regions.features.array("patch", rows.tolist())).to(scores.device)
        placed, there = place_maps(self._scores(tokens), self._shown(rows), grid)
        there = there * self.options.views
        return (scores + (placed * there).sum(0, keepdim=True)) / (1 + there.sum(0, keepdim=True))

    def _prior(self, level: Level, view: int, grid: tuple[int, int]) -> Tensor:
        """Return what the holistic clusters of a level say about each cell of a view, (K, h, w)."""
        rows = self._of_level(view, int(self.regions.tag[level.rows[0]]))
        values = level.prior[np.searchsorted(level.rows, rows)]
        return spread(values, self._covered(rows, grid))

    def _of_level(self, view: int, level: int) -> NDArray[np.int64]:
        rows = self.rows[view]
        of_level: NDArray[np.int64] = rows[self.regions.tag[rows] == level]
        return of_level

    def sizes(self) -> NDArray[np.int64]:
        """Return the fine grid of each view, (N, 2)."""
        fine: NDArray[np.int64] = self.inputs.features.grids * FINE
        return fine

    def exemplars(self) -> list[list[int]]:
        """Return the regions that hold most of each class."""
        order = self.content.cpu().argsort(dim=0, descending=True, stable=True)[:_EXEMPLARS]
        return [column.tolist() for column in order.T]

    def state(self) -> dict[str, Tensor]:
        """Return the centres of patches (K, C) and the temperature of their cosines."""
        return {"centroids": self.centroids.cpu(), "temperature": torch.tensor([self.temperature])}


def _rows_of_views(regions: RegionSet, grids: NDArray[np.int64], patches: bool) -> list[NDArray[np.int64]]:
    """Return the regions of each view.

    Raises:
        UsageError: they are no pyramid, are of another network, keep no patches, or a view has none.
    """
    mend = "run `unsupseg extract --regions pyramid --keep cls,patch` on the images of the features"
    regions.require_same_network()
    order = np.argsort(regions.view, kind="stable")
    starts = np.searchsorted(regions.view[order], np.arange(len(grids) + 1))
    rows = [order[start:stop] for start, stop in pairwise(starts)]
    if lacking := sum(not len(of_view) for of_view in rows):
        raise UsageError(
            f"{lacking} of {len(grids)} views have no pyramid: features need one view for each image (--geometry "
            "native or squash), and regions all of these images."
        )
    levels = np.repeat(
        np.arange(int(regions.tag.max()) + 1), (np.arange(int(regions.tag.max()) + 1) + 1) ** 2
    )
    if any(not np.array_equal(np.sort(regions.tag[of_view]), levels) for of_view in rows):
        raise UsageError(
            f"The regions are no pyramid of views (level l has (l + 1) x (l + 1) of them); {mend}."
        )
    if patches:
        try:
            regions.features.array("patch", [0])
        except UsageError as error:
            raise UsageError(f"{error} Or leave the patches of the views out: --set views=0.") from None
    return rows
