"""Bootstrapped training of the mask transformer: maps and a teacher give the targets of a student, in cycles."""

from __future__ import annotations

import copy
import random
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.methods.interface import Inputs, TrainedNetwork, Trainer
from unsupseg_cli.methods.transfgu.config import BLUR_KERNEL, BLUR_SIGMA, HUE, JITTER, LIVE_SIZE, TrainOptions
from unsupseg_cli.methods.transfgu.maps import unpack_maps
from unsupseg_cli.methods.transfgu.objective import (
    category_loss,
    separation_loss,
    targets,
    uncertainty_loss,
)
from unsupseg_cli.models.decoders import MaskTransformer
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.colours import COLOURS, Step, adjust, blur, change_colours, grey
from unsupseg_cli.training.crops import Place, crop_grid, crop_image
from unsupseg_cli.training.live import LiveSource


class TransfguTrainer(Trainer):
    """Training of TransFGU. The teacher is the student of the last complete cycle, and in the end the result.

    Raises:
        UsageError: the pseudo-labels have no maps, or not as many classes as asked for.
    """

    options: TrainOptions
    explained = MappingProxyType(
        {
            "category": "loss of the classes where maps are sure: good if it falls",
            "uncertainty": "loss of doubt where maps are not sure: good if it falls",
            "separation": "loss of classes that resemble each other: good if it falls",
            "labelled": "share of the pixels that have a class to learn: good if it stays or grows over the cycles",
        }
    )

    def __init__(self, options: TrainOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        if options.crop_least > options.crop_most:
            raise UsageError(
                f"crop_least={options.crop_least} is more than crop_most={options.crop_most}; swap the two."
            )
        self.concepts, self.level = _concepts(inputs)
        self.background = self.level > 0
        views = len(inputs.features.grids)
        self.batch, self.steps = min(options.batch, views), options.cycles * options.cycle_steps
        self.epoch_steps = views // self.batch
        self.clip_value = options.clip
        classes, dim = inputs.classes, inputs.features.dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.stream(inputs.seed, "transfgu"))
            self.student = MaskTransformer(classes, dim, options.dropout).to(inputs.device)
        self.module: nn.Module = self.student
        self.first = copy.deepcopy(self.student.state_dict())
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.finished, self.skipped, self.skip = 0, 0, False
        self.aims = torch.zeros(options.cycles, classes)  # share of each class in the targets of a cycle

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam; biases and norms do not decay. A step that is skipped finds no gradient, and so changes nothing."""
        parameters = list(self.student.parameters())
        vectors = [value for value in parameters if value.ndim <= 1]
        matrices = [value for value in parameters if value.ndim > 1]
        groups = [
            {"params": matrices, "weight_decay": self.options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.Adam(groups, lr=self.options.lr)

        def drop_gradient(*_: Any) -> None:
            if self.skip:
                optimizer.zero_grad(set_to_none=True)

        optimizer.register_step_pre_hook(drop_gradient)
        return optimizer

    def read(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Read tokens (h, w, C), or pixels where the network is in the loop, and maps (K, h, w) of each view."""
        network, masks = self.inputs.network, self.inputs.masks
        assert masks is not None
        assert masks.arrays is not None
        show = self.inputs.features.tokens if network is None else network.pixels
        maps = [unpack_maps(masks.arrays(view), self.concepts).to(self.inputs.device) for view in batch.views]
        return list(zip(show(batch.views), maps, strict=True))

    def losses(self, batch: Batch, read: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return the loss and its three terms, each a mean over the patches of the batch that count for it."""
        shown, maps, grids, permutation = self._look(batch, read)
        own = dict(zip(batch.places, zip(shown, maps, strict=True), strict=True))
        negative, terms, aims = self._negative(batch.step), [], []
        for (height, width), members in indices_by(grids).items():
            rows = [row for row, place in enumerate(members) if place in own]
            if rows:
                patch = torch.stack([own[members[row]][0] for row in rows])
                group_maps = torch.stack([own[members[row]][1] for row in rows])
            else:  # dropout is drawn for the images of the other processes too
                patch = shown[0].new_empty(0, height, width, shown[0].shape[-1])
                group_maps = maps[0].new_empty(0, self.concepts, height, width)
            scores, tokens = self.student.decode(patch, (rows, len(members)))
            if rows:
                classes, counted = self._targets(patch, group_maps)
                terms.append(self._terms(scores, tokens, classes, counted, permutation, negative))
                aims.append(F.one_hot(classes + 1, self.inputs.classes + 1).float().mean((1, 2))[:, 1:])
        category, labelled, uncertainty, decided, separation = torch.cat(terms, 1).mean(1)
        shares = torch.cat([torch.stack([labelled, decided]), torch.cat(aims).mean(0)])
        counts = batch.average(shares.detach())
        self.aims[self.finished] += counts[2:].cpu()
        counts = counts[:2].clamp_min(1e-6)
        losses = {
            "category": category / counts[0],
            "uncertainty": uncertainty / counts[1],
            "separation": separation,
        }
        loss = losses["category"] + self.options.uncertainty * losses["uncertainty"]
        loss = loss + self.options.separation * losses["separation"]
        # Of the whole batch, so that all processes take a step or none.
        self.skip = not float(batch.average(loss.detach())) > 0 and bool(torch.isfinite(loss))
        return {"loss": loss, **losses, "labelled": labelled}

    @torch.no_grad()
    def _targets(self, patch: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class of each patch by maps and teacher, and which patches count as decided."""
        teacher = self.teacher({"patch": patch}) if self.finished else None
        return targets(maps, self.background, self.level, teacher)

    def _terms(
        self,
        scores: Tensor,
        tokens: Tensor,
        classes: Tensor,
        decided: Tensor,
        permutation: Tensor,
        negative: float,
    ) -> Tensor:
        """Return the category loss, the share of patches with a target, uncertainty, its share, separation: (5, B)."""
        return torch.stack(
            [
                category_loss(scores, classes, permutation, negative),
                (classes >= 0).float().mean((1, 2)),
                uncertainty_loss(scores, decided, self.background),
                decided.float().mean((1, 2)),
                separation_loss(tokens),
            ]
        )

    def _negative(self, step: int) -> float:
        """Return the weight of the negative classes: none without a teacher, then more with each epoch of the cycle."""
        if not self.finished:
            return 0.0
        epoch = step % self.options.cycle_steps // self.epoch_steps
        return min(self.options.negative + epoch * self.options.negative_step, self.options.negative_most)

    def _look(
        self, batch: Batch, read: list[tuple[Tensor, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor], list[tuple[int, int]], Tensor]:
        """Return tokens and maps of a crop of each image, the grids of the whole batch, and negative classes."""
        draw = random.Random(seeds.stream(self.inputs.seed, "crops", batch.step))
        options, network = self.options, self.inputs.network
        scale = draw.uniform(options.crop_least, options.crop_most)
        looks = [Place(draw.random(), draw.random(), draw.random() < options.mirror) for _ in batch.whole]
        order = list(range(self.inputs.classes))
        draw.shuffle(order)
        permutation = torch.tensor(order, device=self.inputs.device)
        whole = self.inputs.features.grids[batch.whole].tolist()
        own = [looks[place] for place in batch.places]
        if network is None:
            grids = [(_share(height, scale), _share(width, scale)) for height, width in whole]
            crops = [
                crop_grid(*views, grids[place], looks[place])
                for place, views in zip(batch.places, read, strict=True)
            ]
            shown, maps = [tokens for tokens, _ in crops], [values for _, values in crops]
        else:
            sides = [_share(min(grid), LIVE_SIZE) for grid in whole]
            grids = [(side, side) for side in sides]
            live = [
                crop_image(*views, scale, sides[place], look)
                for place, views, look in zip(batch.places, read, own, strict=True)
            ]
            shown, maps = self._encode(network, [pixels for pixels, _ in live], draw), [m for _, m in live]
        return shown, maps, grids, permutation

    def _encode(self, network: LiveSource, images: list[Tensor], draw: random.Random) -> list[Tensor]:
        """Return the tokens of images whose colours change alike, once for the batch."""
        steps: list[Step] = []
        if draw.random() < self.options.jitter_probability:
            low, high = 1 - JITTER, 1 + JITTER
            steps = [adjust(colour, draw.uniform(low, high)) for colour in COLOURS if colour != "hue"]
            steps.append(adjust("hue", draw.uniform(-HUE, HUE)))
            draw.shuffle(steps)
        if draw.random() < self.options.grey_probability:
            steps.append(grey)
        if draw.random() < self.options.blur_probability:
            steps.append(blur(BLUR_KERNEL, draw.uniform(*BLUR_SIGMA)))
        return network.encode(images, lambda shown: change_colours(shown, steps))

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Count a skipped step; at the end of a cycle, make the student the teacher and begin it anew."""
        self.skipped += self.skip
        if (step + 1) % self.options.cycle_steps == 0:
            self.teacher.load_state_dict(self.student.state_dict())
            self.student.load_state_dict(self.first)
            self.finished += 1

    def state(self) -> dict[str, Any]:
        """Return the teacher, the student's beginning, and what was counted."""
        return {
            "teacher": self.teacher.state_dict(),
            "first": self.first,
            "finished": self.finished,
            "skipped": self.skipped,
            "aims": self.aims,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` returned."""
        self.teacher.load_state_dict(state["teacher"])
        self.first = {name: value.to(self.inputs.device) for name, value in state["first"].items()}
        self.finished, self.skipped = int(state["finished"]), int(state["skipped"])
        self.aims = state["aims"].cpu().clone()

    @torch.no_grad()
    def finish(self) -> TrainedNetwork:
        """Return the student of the last complete cycle; warn of classes that win nowhere."""
        features, classes = self.inputs.features, self.inputs.classes
        used = torch.zeros(classes, dtype=torch.long)
        for view in range(len(features.grids)):
            scores = self.teacher({"patch": features.tokens([view])[0][None]})
            used += torch.bincount(scores.argmax(1).flatten().cpu(), minlength=classes)
        empty, aimed = int((used == 0).sum()), (self.aims > 0).sum(1).tolist()
        warnings = []
        if empty:
            warnings.append(
                f"{empty} of {classes} classes are given to no patch (the targets of the cycles had "
                f"{', '.join(map(str, aimed))}): try fewer cycles, for a teacher outvotes the maps of rare classes, "
                "more cycle_steps, or fewer --classes"
            )
        if self.skipped:
            warnings.append(
                f"{self.skipped} of {self.steps} steps were skipped, whose loss was not above 0: lower negative"
            )
        return TrainedNetwork(
            {"type": "transfgu", "classes": classes, "dim": features.dim},
            {name: value.cpu() for name, value in self.teacher.state_dict().items()},
            figures={
                "cycles": self.finished,
                "skipped_steps": self.skipped,
                "empty_classes": empty,
                "target_classes": aimed,
            },
            warnings=warnings,
        )


def _share(cells: int, scale: float) -> int:
    return max(1, round(scale * cells))


def _concepts(inputs: Inputs) -> tuple[int, float]:
    """Return the number of concepts, and the level of the background class before them, 0 without one."""
    masks = inputs.masks
    if masks is None or masks.arrays is None or "centroids" not in masks.state:
        raise UsageError(
            "TransFGU trains on class activation maps, which these pseudo-labels have not (they are refined, or of "
            "another method): name those of `pseudolabel --method transfgu` with --pseudolabels."
        )
    concepts = len(masks.state["centroids"])
    level = float(masks.state["background"])
    if concepts < 2:
        raise UsageError(f"TransFGU compares concepts and found {concepts}; make pseudo-labels of 2 or more.")
    if (classes := concepts + (level > 0)) != inputs.classes:
        kind = f"{concepts} concepts{' and a background' if level else ''}"
        raise UsageError(
            f"--classes {inputs.classes} does not fit the pseudo-labels, of {kind}; leave it out or say {classes}."
        )
    return concepts, level
