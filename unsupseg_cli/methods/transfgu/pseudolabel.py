"""Concepts from regions, and where in an image each of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.clustering.euclidean import euclidean_kmeans
from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.methods.interface import Inputs, Labeller, Masks, RegionSet
from unsupseg_cli.methods.transfgu.config import PseudolabelOptions
from unsupseg_cli.methods.transfgu.maps import compose, pack_maps
from unsupseg_cli.models.class_row import ClassRow, class_row
from unsupseg_cli.models.memory import with_backoff

_IMAGES = 8  # at a time
_CLUSTERED = 1_000_000  # most regions that are clustered together: 1.5 GB of 384 channels
_EXEMPLARS = 8


def cluster_concepts(
    tokens: NDArray[np.float32],
    count: int,
    options: PseudolabelOptions,
    seed: int,
    reporter: Reporter | None = None,
) -> Tensor:
    """Return the centres (count, C) of k-means on CLS tokens (n, C) as they are, with Euclidean distances."""
    kmeans = euclidean_kmeans(
        tokens,
        count,
        restarts=options.restarts,
        iterations=options.iterations,
        seed=seed % 2**32,
        reporter=reporter,
    )
    return torch.from_numpy(kmeans.cluster_centers_).float()


def maps_of(
    row: ClassRow, concepts: Tensor, gradient_scale: float, mass: float, everywhere: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return attention (B, P) over its maximum, where each concept may be (B, K, P), and its evidence (B, K, P).

    The evidence is how much the CLS token comes nearer to the concept where more attention goes to the patch; of each
    concept the patches that hold ``mass`` of it keep it.

    Args:
        row: of B images.
        concepts: (K, C).
        gradient_scale: factor on the gradients.
        mass: share in (0, 1].
        everywhere: where the gradient speaks against all concepts, the one may be that it speaks least against.
    """
    gradients = row.gradients(concepts)
    attention = row.attention.mean(1)
    attention = attention / attention.amax(1, keepdim=True)
    evidence = (-gradients).clamp_min(0) * gradient_scale
    lowest = evidence.sort(dim=-1)
    share = lowest.values.cumsum(-1) / lowest.values.sum(-1, keepdim=True).clamp_min(1e-30)
    kept = torch.zeros_like(gradients, dtype=torch.bool).scatter_(-1, lowest.indices, share > 1 - mass)
    open_to = gradients <= 0
    if everywhere:
        least = gradients == gradients.amin(1, keepdim=True)
        open_to |= least & ~open_to.any(1, keepdim=True)
    return attention, open_to, torch.where(kept, evidence, 0)


class TransfguLabeller(Labeller):
    """A map of every concept in every view; the highest one is the class of a patch."""

    options: PseudolabelOptions

    def __init__(self, options: PseudolabelOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        assert inputs.network is not None
        assert inputs.regions is not None
        self.network, self.regions = inputs.network, inputs.regions
        self.regions.require_same_network()
        self.concepts = torch.empty(0)
        self._members: list[
            tuple[NDArray[np.int64], int]
        ] = []  # regions, and how many concepts are made of them

    def fit(self) -> dict[str, Any]:
        """Cluster the regions."""
        options, reporter = self.options, self.inputs.reporter
        self._members = _groups(options, self.regions, self.inputs.classes)
        parts = [
            cluster_concepts(
                self._tokens(members),
                count,
                options,
                seeds.stream(self.inputs.seed, f"concepts-{part}"),
                reporter,
            )
            for part, (members, count) in enumerate(self._members)
        ]
        self.concepts = torch.cat(parts).to(self.inputs.device)
        foreground = int((self.regions.tag == 1).sum())
        reporter.info(
            f"{len(self.concepts)} concepts from {len(self.regions):,} regions, {foreground:,} of the foreground"
        )
        return {
            "regions": len(self.regions),
            "foreground_regions": foreground,
            "concepts": len(self.concepts),
        }

    def _tokens(self, members: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the CLS tokens (n, C) of regions, or of as many as are clustered, evenly drawn."""
        reporter = self.inputs.reporter
        if len(members) > _CLUSTERED:
            reporter.info(f"concepts of {_CLUSTERED:,} of {len(members):,} regions, evenly drawn")
            members = members[np.linspace(0, len(members) - 1, _CLUSTERED).astype(np.int64)]
        tokens = torch.cat(
            [block.cpu() for block in self.regions.blocks("cls", members.tolist(), reporter)]
        ).numpy()
        if not np.isfinite(tokens).all():
            raise UnsupsegError(
                "A region's CLS token holds NaN or infinite values; extract the regions again."
            )
        return tokens

    def learned(self) -> dict[str, Tensor]:
        """Return the concepts (K, C)."""
        return {"concepts": self.concepts.cpu()}

    def restore(self, learned: Mapping[str, Tensor]) -> None:
        """Take the concepts."""
        self._members = _groups(self.options, self.regions, self.inputs.classes)
        self.concepts = learned["concepts"].to(self.inputs.device)

    def exemplars(self) -> list[list[int]]:
        """Return the regions whose CLS tokens are nearest to each concept; the background has none."""
        nearest: list[list[int]] = [[]] if self.options.background else []
        first = 0
        for members, count in self._members:
            nearest += self._nearest(self.concepts.cpu()[first : first + count], members)
            first += count
        return nearest

    def _nearest(self, concepts: Tensor, members: NDArray[np.int64]) -> list[list[int]]:
        """Return the regions nearest to each concept (K, C), nearest first, of blocks that are read one by one."""
        rows, found = torch.empty(len(concepts), 0, dtype=torch.int64), torch.empty(len(concepts), 0)
        start = 0
        for block in self.regions.blocks("cls", members.tolist()):
            numbers = torch.from_numpy(members[start : start + len(block)]).expand(len(concepts), -1)
            rows = torch.cat([rows, numbers], 1)
            found = torch.cat([found, torch.cdist(concepts, block.cpu())], 1)
            order = found.argsort(dim=1, stable=True)[:, :_EXEMPLARS]
            rows, found, start = rows.gather(1, order), found.gather(1, order), start + len(block)
        return [row.tolist() for row in rows]

    @torch.no_grad()
    def label(self, views: Sequence[int]) -> list[Masks]:
        """Return a mask for each class that wins somewhere, on the token grid, with the maps as arrays."""
        grids = self.inputs.features.grids[list(views)].tolist()
        masks: dict[int, Masks] = {}
        for places in indices_by(map(tuple, grids)).values():

            def run(part: Sequence[int]) -> list[Masks]:
                return self._label([views[place] for place in part], grids[part[0]])

            masks |= dict(zip(places, with_backoff(run, places, _IMAGES), strict=True))
        return [masks[place] for place in range(len(views))]

    def _label(self, views: Sequence[int], grid: Sequence[int]) -> list[Masks]:
        """Return the masks of views of one grid."""
        options, backbone = self.options, self.network.backbone
        images = torch.stack(self.network.pixels(views)).movedim(1, -1) * 255
        row = class_row(backbone, backbone.normalise(images))
        maps = maps_of(
            row, self.concepts, options.gradient_scale, options.mass, everywhere=not options.background
        )
        attention, open_to, evidence = (part.view(*part.shape[:-1], *grid).cpu() for part in maps)
        level = options.background_level if options.background else None
        masks = []
        for view in zip(attention, open_to, evidence, strict=True):
            together = compose(*view)
            labels = highest(together, level)
            soft = with_background(together, level) if level is not None else together
            masks.append(_masks(labels, soft, pack_maps(*view, top=options.top)))
        return masks

    def state(self) -> dict[str, Tensor]:
        """Return the concepts, ``centroids`` (K, C), and the ``background``'s level, 0 without one."""
        level = self.options.background_level if self.options.background else 0.0
        return {"centroids": self.concepts.cpu(), "background": torch.tensor([level])}


def highest(maps: Tensor, background: float | None = None) -> Tensor:
    """Return the class of each patch (h, w), of maps (K, h, w); -1 where no concept may be and nothing else is.

    Args:
        maps: of the concepts.
        background: level of class 0, the background, if there is one.
    """
    if background is not None:
        return with_background(maps, background).argmax(0)
    return torch.where(maps.amax(0) > 0, maps.argmax(0), VOID)


def with_background(maps: Tensor, level: float) -> Tensor:
    """Return maps (1 + K, h, w): before the concepts what the highest of them lacks of a level."""
    return torch.cat([(level - maps.amax(0, keepdim=True)).clamp_min(0), maps])


def _masks(labels: Tensor, maps: Tensor, arrays: dict[str, NDArray[Any]]) -> Masks:
    """Return a mask for each class that a patch has, scored by its map's mean."""
    classes, numbers = torch.unique(labels, return_inverse=True)
    shown = classes[classes >= 0]
    numbers = numbers - (len(classes) - len(shown))
    areas = torch.stack([(labels == value).sum() for value in shown]) if len(shown) else torch.zeros(0)
    means = [float(maps[value][labels == value].mean()) for value in shown]
    return Masks(
        numbers.to(torch.int16).numpy(),
        areas.long().numpy(),
        np.array(means, np.float32).clip(0, 1),
        shown.numpy(),
        arrays=arrays,
    )


def _groups(
    options: PseudolabelOptions, regions: RegionSet, classes: int
) -> list[tuple[NDArray[np.int64], int]]:
    """Return which regions are clustered together, and into how many concepts.

    Raises:
        UsageError: the counts do not make up the classes, or there are fewer regions than concepts.
    """
    concepts = classes - int(options.background)
    extra = " and the background" if options.background else ""
    if options.things is None and options.stuff is None:
        groups = [("", np.arange(len(regions)), concepts)]
    else:
        things = options.things if options.things is not None else concepts - (options.stuff or 0)
        stuff = options.stuff if options.stuff is not None else concepts - things
        if things < 0 or stuff < 0 or things + stuff != concepts:
            raise UsageError(
                f"{things} things, {stuff} stuff{extra} are not the {classes} classes asked for: let things and stuff "
                f"add up to {concepts}, or change --classes."
            )
        groups = [
            ("foreground ", np.flatnonzero(regions.tag == 1), things),
            ("background ", np.flatnonzero(regions.tag == 0), stuff),
        ]
    for name, members, count in groups:
        if len(members) < count:
            raise UsageError(
                f"There are {len(members)} {name}regions for {count} concepts; lower "
                f"--{name.strip() or 'foreground'}-share of `extract --regions anchors`, add --scales, or ask for "
                "fewer."
            )
    if concepts < 1:
        raise UsageError(f"{classes} classes leave no concept beside the background; ask for more --classes.")
    return [(members, count) for _, members, count in groups if count]
