"""Principal mask proposals, batched over images of any aspect ratio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.clustering.principal import principal_direction, products
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.crf import refine_batch
from unsupseg_cli.methods.interface import Inputs, Labeller, Masks
from unsupseg_cli.methods.primaps.config import PseudolabelOptions

Stop = Literal["coverage", "stall", "cap"]

_VIEWS = 256  # that tell how alike two tokens are
_FLAT = 0.01  # an image whose tokens differ from their mean by less than this share is one surface


@dataclass(frozen=True)
class Proposals:
    """The masks of one image, in the order they were found.

    A mask that the median filter emptied keeps its channel (area 0): the number of channels sets the contrast
    of the log-softmax that the CRF starts from.
    """

    covers: Tensor
    """(M, h, w) bool: the cells each mask covered, before smoothing; no cell is covered twice."""
    masks: Tensor
    """(M, h, w) float32 in [0, 1], smoothed; masks may overlap."""
    background: Tensor
    """(h, w) float32 in [0, 1]."""
    log_probs: Tensor
    """(M + 1, h, w) float32; channel 0 is the background."""
    areas: Tensor
    """(M,) int64: cells where the smoothed mask is positive."""
    scores: Tensor
    """(M,) float32: mean cosine between the anchor and the cells it covered."""
    anchors: Tensor
    """(M,) int64: flat index of each mask's anchor cell."""
    stop: Stop
    """Why the search ended."""

    def __len__(self) -> int:
        return len(self.masks)


def propose(features: Tensor | Sequence[Tensor], config: PseudolabelOptions) -> list[Proposals]:
    """Find the masks of a batch of images.

    Args:
        features: (B, h, w, C), or one (h_i, w_i, C) per image on one device.
        config: thresholds and stopping rules.

    Returns:
        One ``Proposals`` per image, possibly without masks (all features zero).

    Raises:
        UnsupsegError: a feature is NaN or infinite.

    The anchor is the free cell with the largest |v . f|, which depends on no sign and is never a covered cell. With
    ``anchor="signed"`` it is the published arg-max of v . f, where covered cells count as 0; `oriented` gives v a sign.
    """
    grids = [tuple(view.shape[:2]) for view in features]
    if not grids:
        return []
    cells, valid = _pack(features)
    unit = F.normalize(cells, dim=-1)
    size = valid.sum(1)
    # The covariance does not change under a shift; centring keeps the later subtractions accurate.
    centred = (cells - (cells.sum(1) / size[:, None])[:, None]) * valid[..., None]
    moment, total = centred.mT @ centred, centred.sum(1)
    free, uncovered = valid.clone(), size.clone()
    stalled = torch.zeros_like(size)
    active = torch.arange(len(grids), device=cells.device)
    masks_of: list[list[tuple[Tensor, float, int]]] = [[] for _ in grids]
    stops: list[Stop] = ["cap"] * len(grids)

    for _ in range(config.max_masks):
        direction = principal_direction(
            moment - total[:, :, None] * total[:, None] / uncovered[:, None, None]
        )
        if config.anchor == "signed":
            direction = oriented(direction, centred - (total / uncovered[:, None])[:, None], free)
            along = products(unit, direction).masked_fill(~free, 0.0).masked_fill(~valid, -torch.inf)
        else:
            along = products(unit, direction).abs().masked_fill(~free, -1.0)
        anchor = along.argmax(1)
        chosen = unit[torch.arange(len(anchor), device=anchor.device), anchor]
        similarity = products(unit, chosen).masked_fill(~free, 0.0)
        peak = similarity.amax(1, keepdim=True)
        inside = (similarity >= config.threshold * peak) & (similarity > 0)
        soft = torch.where(inside, similarity / peak.clamp_min(1e-12), 0.0)
        gained = inside.sum(1)
        score = (similarity * inside).sum(1) / gained.clamp_min(1)
        free, uncovered = free & ~inside, uncovered - gained
        stalled = torch.where(gained > 0, 0, stalled + 1)
        covered_enough = uncovered <= (1 - config.coverage) * size + 1e-6
        finished = covered_enough | (stalled >= config.stall)

        rows = zip(
            *(column.tolist() for column in (active, anchor, gained, score, covered_enough, finished)),
            strict=True,
        )
        for row, (image, anchor_cell, count, mean, enough, over) in enumerate(rows):
            if count:
                masks_of[image].append((soft[row], mean, anchor_cell))
            if over:
                stops[image] = "coverage" if enough else "stall"

        if bool(finished.all()):
            break
        if bool(finished.any()):
            going = ~finished
            active, unit, centred, valid, moment, total, free, uncovered, size, stalled, inside = (
                tensor[going]
                for tensor in (
                    active, unit, centred, valid, moment, total, free, uncovered, size, stalled, inside,
                )
            )  # fmt: skip
        removed = _gather(centred, inside)
        moment = torch.baddbmm(moment, removed.mT, removed, alpha=-1)
        total = total - removed.sum(1)
    return _finish(masks_of, stops, grids, config, cells.device)


class PrimapsLabeller(Labeller):
    """Principal mask proposals of every view; they have no classes yet."""

    options: PseudolabelOptions

    def __init__(self, options: PseudolabelOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        self.center = options.center
        self.stopped: Counter[str] = Counter()

    def fit(self) -> dict[str, Any]:
        """Choose how tokens are centred, by the mean cosine of two random tokens of the collection."""
        features = self.inputs.features
        views = np.unique(np.linspace(0, len(features.grids) - 1, _VIEWS).round().astype(int)).tolist()
        units = [
            F.normalize(tokens, dim=-1).mean((0, 1)) for view in views for tokens in features.tokens([view])
        ]
        alike = float(torch.stack(units).mean(0).square().sum())
        if self.center == "auto":
            self.center = "image" if alike >= self.options.threshold else "none"
        self.inputs.reporter.info(
            f"two random tokens have a cosine of {alike:.2f} on average: center = {self.center}"
        )
        return {"threshold": self.options.threshold, "mean_cosine": alike, "center": self.center}

    def learned(self) -> dict[str, Tensor]:
        """Return whether tokens are centred."""
        return {"center": torch.tensor(self.center == "image")}

    def restore(self, learned: Mapping[str, Tensor]) -> None:
        """Take how tokens are centred."""
        self.center = "image" if learned["center"] else "none"

    def label(self, views: Sequence[int]) -> list[Masks]:
        """Return the masks of some views: refined, at the size of their images, or on the token grid."""
        tokens = self.inputs.features.tokens(views)
        if self.center == "image":
            tokens = [_centred(view) for view in tokens]
        proposals = propose(tokens, self.options)
        self.stopped.update(proposal.stop for proposal in proposals)
        scores = [proposal.log_probs for proposal in proposals]
        if self.options.crf:
            scores = refine_batch(scores, self.inputs.images(views))
        return [self._masks(proposal, score) for proposal, score in zip(proposals, scores, strict=True)]

    @staticmethod
    def _masks(proposals: Proposals, scores: Tensor) -> Masks:
        labels = (scores.argmax(0) - 1).to(torch.int16).cpu().numpy()  # channel 0 is the background
        area = np.bincount(labels[labels >= 0], minlength=len(proposals)).astype(np.int64)
        remaining = np.flatnonzero(area)
        number = np.full(len(proposals) + 1, -1, np.int16)  # the last entry is the background's, label -1
        number[remaining] = np.arange(len(remaining))
        score = proposals.scores.cpu().numpy()[remaining].astype(np.float32)
        soft = proposals.log_probs[[0, *(remaining + 1)]].log_softmax(0).cpu().numpy().astype(np.float16)
        return Masks(number[labels], area[remaining], score, np.full(len(remaining), -1), soft)

    def figures(self) -> dict[str, Any]:
        """Return how many views stopped for which reason; ``cap`` is the bound on masks."""
        counts = {f"stopped_by_{reason}": self.stopped[reason] for reason in ("coverage", "stall", "cap")}
        self.stopped.clear()
        return counts


def _centred(view: Tensor) -> Tensor:
    """Return the tokens (h, w, C) less their mean; a flat image, which is nothing but its mean, stays as it is."""
    centred = view - view.mean((0, 1))
    return centred if float(centred.norm()) > _FLAT * float(view.norm()) else view


def oriented(direction: Tensor, cells: Tensor, free: Tensor) -> Tensor:
    """Return axes (B, C) with the sign that `torch.pca_lowrank` gives them most often on a CPU.

    With at least as many free cells as channels the first free cell has a positive score on the axis, with fewer the
    first channel of the axis is positive: in about nine of ten random draws of that solver (docs/deviations.md).

    Args:
        direction: the axes.
        cells: (B, P, C), less the mean of the free ones.
        free: (B, P) bool, the cells that the axis is of.
    """
    first = free.to(torch.uint8).argmax(1)  # the first of equals
    score = (cells[torch.arange(len(cells), device=cells.device), first] * direction).sum(1)
    decisive = torch.where(free.sum(1) >= cells.shape[2], score, direction[:, 0])
    return torch.where(decisive[:, None] < 0, -direction, direction)


def _pack(features: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return cells (B, P, C) float32, padded with zeros, and which of them exist (B, P)."""
    views = [view.reshape(-1, view.shape[-1]).float() for view in features]
    for index, view in enumerate(views):
        if not bool(torch.isfinite(view).all()):
            raise UnsupsegError(
                f"The features of image {index} of this batch hold NaN or infinite values; extract them again "
                "(with --precision fp32 if half precision overflowed)."
            )
    lengths = torch.tensor([len(view) for view in views], device=views[0].device)
    cells = torch.nn.utils.rnn.pad_sequence(views, batch_first=True)
    return cells, torch.arange(cells.shape[1], device=cells.device) < lengths[:, None]


def _gather(cells: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen cells (B, k, C) of each image, filled with zeros up to the largest count k."""
    count = int(chosen.sum(1).max())
    picked, index = chosen.to(torch.float32).topk(count, dim=1)
    return cells.gather(1, index[..., None].expand(-1, -1, cells.shape[-1])) * picked[..., None]


def _finish(
    masks_of: list[list[tuple[Tensor, float, int]]],
    stops: list[Stop],
    grids: Sequence[tuple[int, ...]],
    config: PseudolabelOptions,
    device: torch.device,
) -> list[Proposals]:
    """Smooth the masks, add the background and turn them into log-probabilities."""
    results = []
    for masks, stop, (height, width) in zip(masks_of, stops, grids, strict=True):
        soft = torch.zeros(0, height, width, device=device)
        if masks:
            soft = torch.stack([mask[: height * width] for mask, _, _ in masks]).view(-1, height, width)
        smooth = (_median(soft, config.median) * config.gain).clamp(0, 1)
        positive = smooth > 0
        level = smooth[positive].mean() if bool(positive.any()) else torch.ones((), device=device)
        background = (level - smooth.sum(0)).clamp(0, 1)
        results.append(
            Proposals(
                covers=soft > 0,
                masks=smooth,
                background=background,
                log_probs=torch.cat([background[None], smooth]).log_softmax(0),
                areas=positive.flatten(1).sum(1),
                scores=torch.tensor([score for _, score, _ in masks], device=device),
                anchors=torch.tensor([anchor for _, _, anchor in masks], dtype=torch.int64, device=device),
                stop=stop,
            )
        )
    return results


def _median(masks: Tensor, side: int) -> Tensor:
    """Median-filter masks (M, h, w), mirrored at the border (repeated where the grid is too thin to mirror)."""
    reach = side // 2
    if not len(masks) or not reach:
        return masks
    height, width = masks.shape[1:]
    padded = F.pad(masks[None], (reach, reach, 0, 0), mode="reflect" if width > reach else "replicate")
    padded = F.pad(padded, (0, 0, reach, reach), mode="reflect" if height > reach else "replicate")[0]
    windows = padded.unfold(1, side, 1).unfold(2, side, 1).flatten(3)
    return windows.median(-1).values
