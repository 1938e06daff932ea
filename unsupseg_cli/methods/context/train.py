"""Siamese training: two views of an image, one changed before the network and one after, and their guidance."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unsupseg_cli.clustering.online import DEAD, OnlineCentroids, sums_of
from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.methods.context.config import FINE, TrainOptions
from unsupseg_cli.methods.context.guidance import unpack
from unsupseg_cli.methods.context.network import ContextNetwork
from unsupseg_cli.methods.context.objective import balance_loss, class_loss, guidance_loss
from unsupseg_cli.methods.interface import Inputs, TrainedNetwork, Trainer
from unsupseg_cli.models.boxes import WHOLE, Box, places
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.colours import COLOURS, Step, adjust, change_colours
from unsupseg_cli.training.crops import CellCrop, whole


@dataclass(frozen=True)
class Shown:
    """What is read of a view: its guidance (K, h, w), and what the network or the backbone needs of it by name.

    ``patch`` is (C, h, w), ``cls`` (C,), ``pixels`` (3, H, W) from 0 to 1.
    """

    guidance: Tensor
    arrays: dict[str, Tensor]


class ContextTrainer(Trainer):
    """Training of the embedding; the clusters begin as those of the pseudo-labels.

    Raises:
        UsageError: the pseudo-labels have no guidance, or are of another number of classes, or a patch has no half.
    """

    options: TrainOptions
    explained = MappingProxyType(
        {
            "within": "loss of places in one view: good if it falls",
            "cross": "loss between the two views: good if it falls",
            "agree": "share of the places that both views give one class: good if it grows",
            "guidance": "distance from the guidance of the pyramid: good if it falls",
            "balance": "distance of the classes' shares from those of the pseudo-labels: good if it stays small",
        }
    )

    def __init__(self, options: TrainOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        features, classes, masks = inputs.features, inputs.classes, inputs.masks
        if masks is None or masks.arrays is None or "temperature" not in masks.state:
            raise UsageError(
                "Context-aware clustering trains on guidance, which these pseudo-labels have not (they are refined, or "
                "of another method): name those of `pseudolabel --method context` with --pseudolabels."
            )
        centroids = masks.state["centroids"]
        if len(centroids) != classes or classes < 2:
            raise UsageError(
                f"--classes {classes} does not fit the pseudo-labels, of {len(centroids)} classes; leave it out"
                f"{' and make pseudo-labels of 2 or more' if len(centroids) < 2 else ''}."
            )
        self.guided = masks.arrays
        self.steps, self.batch = options.steps, min(options.batch, len(features.grids))
        self.network_fields: dict[str, Any] = {
            "classes": classes,
            "dim": features.dim,
            "scale": 1 / float(masks.state["temperature"]),
            "width": options.width,
            "stride": self._stride() if options.cae else None,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.stream(inputs.seed, "context"))
            self.network = ContextNetwork(**self.network_fields)
        self.network.centroids.copy_(F.normalize(centroids, dim=-1))
        self.module: nn.Module = self.network.to(inputs.device)
        self.centroids = OnlineCentroids(self.network.centroids, options.momentum, options.largest)
        self.cells: tuple[Tensor, Tensor] | None = None
        self.start = self._start()
        self.before = self.equivariance()

    def _stride(self) -> int:
        """Return half the pixels of a patch's side."""
        patch = int(self.inputs.images([0])[0].shape[0] // self.inputs.features.grids[0][0])
        if patch % FINE:
            raise UsageError(
                f"Patches of {patch} pixels have no half, which is the stride of the context-aware embedding; take a "
                "backbone with an even patch size, or --set cae=false."
            )
        return patch // FINE

    def _start(self) -> Tensor:
        """Return the shares of the classes (K,) in the guidance of some images."""
        views = evenly(len(self.inputs.features.grids), _COUNTED)
        maps = [unpack(self.guided(view), self.inputs.classes).mean((1, 2)) for view in views]
        shares = torch.stack(maps).mean(0).clamp_min(DEAD / self.inputs.classes)
        return (shares / shares.sum()).to(self.inputs.device)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over the embedding; the centroids follow the means of their cells."""
        return torch.optim.Adam(self.module.parameters(), lr=self.options.lr)

    def rate(self, progress: float) -> float | None:
        """Return a cosine that falls to 0."""
        return (1 + math.cos(math.pi * progress)) / 2

    def read(self, batch: Batch) -> list[Shown]:
        """Read guidance, tokens and pixels; with the network in the loop the tokens come later."""
        return self._read(batch.views)

    def _read(self, views: Sequence[int]) -> list[Shown]:
        inputs, network = self.inputs, self.inputs.network
        columns: dict[str, list[Tensor]] = {}
        if network is None:
            columns["patch"] = [tokens.movedim(-1, 0) for tokens in inputs.features.tokens(views)]
        if self.options.cae:
            columns["cls"] = inputs.features.array("cls", views)
            columns["pixels"] = [_to_pixels(image).to(inputs.device) for image in inputs.images(views)]
        elif network is not None:
            columns["pixels"] = network.pixels(views)
        guidance = [unpack(self.guided(view), inputs.classes).to(inputs.device) for view in views]
        return [
            Shown(maps, {name: column[row] for name, column in columns.items()})
            for row, maps in enumerate(guidance)
        ]

    def losses(self, batch: Batch, read: list[Shown]) -> dict[str, Tensor]:
        """Return the loss, its terms and the share of cells on which the two views agree."""
        draw = random.Random(seeds.stream(self.inputs.seed, "looks", batch.step))
        all_looks = self._looks(draw, self.inputs.features.grids[batch.whole].tolist())
        changes = [self._change(draw), self._change(draw)]
        looks = [all_looks[place] for place in batch.places]
        grids = self.inputs.features.grids[batch.views].tolist()
        first = self._embed(read, grids, looks, changes[0])
        second = self._embed(read, grids, None, changes[1])
        second = [look.of(maps, self.network.fine) for look, maps in zip(looks, second, strict=True)]
        terms, sums, counts, shares = [], [], [], []
        for of_first, of_second, look, shown in zip(first, second, looks, read, strict=True):
            pair = torch.stack([of_first, of_second])
            scores = self.network.scores(pair)
            shares.append(scores.softmax(1).mean((0, 2, 3)))
            with torch.no_grad():
                classes = self.centroids.assign(scores)
                total, count = sums_of(pair, classes, self.inputs.classes)
                sums.append(total / count.sum())
                counts.append(count / count.sum())
            within, cross = class_loss(scores, classes).mean(), class_loss(scores, classes.flip(0)).mean()
            agree = (scores[0].argmax(0) == scores[1].argmax(0)).float().mean()
            parts = [within, cross, agree]
            if self.options.psg:
                guidance = look.of(shown.guidance, FINE)
                if self.network.fine == 1:
                    guidance = F.avg_pool2d(guidance, FINE)
                parts.append(guidance_loss(scores, guidance[None].expand_as(scores)).mean())
            terms.append(torch.stack(parts))
        self.cells = (
            batch.average(torch.stack(sums).mean(0)),
            batch.average(torch.stack(counts).mean(0)),
        )
        within, cross, agree, *guided = torch.stack(terms).mean(0)
        losses = {"loss": (within + cross) / 2, "within": within, "cross": cross, "agree": agree}
        if guided:
            losses["guidance"] = guided[0]
            losses["loss"] = losses["loss"] + self.options.guidance * guided[0]
        if self.options.balance:
            mean = torch.stack(shares).mean(0)
            losses["balance"] = balance_loss(mean, batch.average(mean.detach()), self.start)
            losses["loss"] = losses["loss"] + self.options.balance * losses["balance"]
        return losses

    def _looks(self, draw: random.Random, grids: Sequence[Sequence[int]]) -> list[CellCrop]:
        """Return what the one view of each image shows: crops of one scale, each at its own place."""
        scale, looks = draw.uniform(self.options.crop_least, 1), []
        for height, width in grids:
            rows, columns = max(1, round(scale * height)), max(1, round(scale * width))
            top, left = round(draw.random() * (height - rows)), round(draw.random() * (width - columns))
            looks.append(CellCrop(top, left, rows, columns, draw.random() < self.options.mirror))
        return looks

    def _change(self, draw: random.Random) -> list[Step]:
        """Return a change of colours, for all images of a view alike."""
        reach = self.options.jitter
        amounts = [draw.uniform(1 - reach, 1 + reach) for _ in range(3)]
        return [adjust(*step) for step in zip(COLOURS[:3], amounts, strict=True)] if reach else []

    def _embed(
        self,
        read: Sequence[Shown],
        grids: Sequence[Sequence[int]],
        looks: Sequence[CellCrop] | None,
        change: Sequence[Step],
    ) -> list[Tensor]:
        """Return the embeddings (C, h, w) of looks, or of the whole images."""
        chosen = looks or [whole(grid) for grid in grids]
        boxes = [look.box(grid) for look, grid in zip(chosen, grids, strict=True)] if looks else None
        embeddings: list[Tensor] = [torch.empty(0)] * len(read)
        for members in indices_by((look.rows, look.columns) for look in chosen).values():
            parts = [(read[row], chosen[row], grids[row]) for row in members]
            arrays = self._arrays(parts, change, [boxes[row] for row in members] if boxes else None)
            for row, maps in zip(members, self.network.embed(arrays), strict=True):
                embeddings[row] = maps
        return embeddings

    def _arrays(
        self,
        parts: Sequence[tuple[Shown, CellCrop, Sequence[int]]],
        change: Sequence[Step],
        boxes: Sequence[Box] | None,
    ) -> dict[str, Tensor]:
        """Return what the network reads of looks of one size."""
        arrays, of_all = {}, [shown.arrays for shown, _, _ in parts]
        if "pixels" in of_all[0]:
            cells = [
                of_view["pixels"].shape[1] // grid[0]
                for of_view, (_, _, grid) in zip(of_all, parts, strict=True)
            ]
            looks = zip(of_all, parts, cells, strict=True)
            shown = torch.stack([look.of(of_view["pixels"], n) for of_view, (_, look, _), n in looks])
            arrays["pixels"] = change_colours(shown, change)
        if self.inputs.network is None:
            tokens = [look.of(shown.arrays["patch"]) for shown, look, _ in parts]
            arrays["patch"] = torch.stack(tokens).movedim(1, -1)
        else:
            arrays["patch"] = torch.stack(self.inputs.network.encode(list(arrays["pixels"])))
        if self.options.cae:
            arrays["cls"] = torch.stack([of_view["cls"] for of_view in of_all])
            pixels = arrays["pixels"]
            height, width = pixels.shape[2:]
            where = [places(box, height, width, pixels.device) for box in boxes or [WHOLE] * len(parts)]
            arrays["place"] = torch.stack(where).movedim(-1, 1)
            mean, std = (pixels.new_tensor(v).view(-1, 1, 1) for v in (self.network.mean, self.network.std))
            arrays["pixels"] = (pixels - mean) / std
        return arrays

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Move the centroids."""
        assert self.cells is not None
        draw = torch.Generator().manual_seed(seeds.stream(self.inputs.seed, "split", step))
        self.centroids.update(*self.cells, draw)

    def state(self) -> dict[str, Any]:
        """Return what the centroids count, and what was measured before training."""
        return {**self.centroids.state(), "before": self.before}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` returned."""
        self.centroids.restore(state)
        self.before = state["before"]

    @torch.no_grad()
    def equivariance(self) -> float | None:
        """Return on how many cells of some images the classes of the mirror image agree with the mirrored classes.

        None on stored tokens, which are not those of a mirror image.
        """
        if self.inputs.network is None:
            return None
        shares = []
        for view in evenly(len(self.inputs.features.grids), _JUDGED):
            read, grid = self._read([view]), self.inputs.features.grids[[view]].tolist()
            turned = [whole(grid[0], mirrored=True)]
            before, after = (
                self.network.scores(self._embed(read, grid, look, [])[0][None]).argmax(1)
                for look in (turned, None)
            )
            shares.append((before.flip(-1) == after).float().mean())
        return float(torch.stack(shares).mean())

    @torch.no_grad()
    def finish(self) -> TrainedNetwork:
        """Return the last state; warn of clusters that died, or that swallow the rest."""
        self.module.eval()
        warnings = []
        if self.centroids.reseeded:
            warnings.append(
                f"{self.centroids.reseeded} times a cluster died and took half of the largest one: try fewer --classes"
            )
        if self.centroids.swallowing:
            warnings.append(
                f"in {self.centroids.swallowing} of {self.steps} steps a cluster had more than "
                f"{self.centroids.limit:.0%} of all cells and was damped: lower largest, or try fewer --classes"
            )
        figures: dict[str, Any] = {
            "reseeded_clusters": self.centroids.reseeded,
            "swallowing_steps": self.centroids.swallowing,
            "cluster_shares": self.centroids.shares.tolist(),
        }
        if self.before is not None:
            figures |= {"equivariance_before": self.before, "equivariance": self.equivariance()}
        return TrainedNetwork(
            {"type": "context", **self.network_fields},
            {name: value.cpu() for name, value in self.network.state_dict().items()},
            figures=figures,
            warnings=warnings,
        )


def _to_pixels(image: NDArray[np.uint8]) -> Tensor:
    """Return an image (H, W, 3) as (3, H, W) from 0 to 1."""
    return torch.from_numpy(image.copy()).movedim(-1, 0).float() / 255


def evenly(count: int, most: int) -> list[int]:
    """Return ``most`` places of ``count`` at equal distances, or all."""
    few = min(count, most)
    return [place * count // few for place in range(few)]


_JUDGED = 16  # images whose equivariance is measured
_COUNTED = 256  # images whose guidance tells the shares of the classes
