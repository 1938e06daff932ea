"""What a method offers to the stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.training.loop import Task
from unsupseg_cli.training.tokens import TokenSource


@dataclass(frozen=True)
class Masks:
    """The pseudo-masks of one view.

    ``labels`` (h, w) int16 holds mask ids from 0, -1 where no mask is; ``area`` (cells), ``score`` in [0, 1]
    and ``group`` (class of the mask, -1 if the method gives none) have one entry per mask. ``soft`` (M + 1, h,
    w), where the method has it, holds log-probabilities of no mask and of each mask, on the token grid.
    """

    labels: NDArray[np.int16]
    area: NDArray[np.int64]
    score: NDArray[np.float32]
    group: NDArray[np.int64]
    soft: NDArray[np.float16] | None = None


class Pseudolabeller(Protocol):
    """Features -> masks, computed where the tokens lie."""

    needs_images: bool
    """Whether `label` reads the images; its labels then have their size, else that of the token grid."""

    def fit(self, source: TokenSource, reporter: Reporter) -> dict[str, Any]:
        """Learn what spans the whole collection (cluster centres, say); return figures for the manifest."""

    def label(self, tokens: Sequence[Tensor], images: Sequence[NDArray[np.uint8]] | None) -> list[Masks]:
        """Return the masks of some views; tokens (h, w, C), images uint8 (H, W, 3) where they are needed."""

    def figures(self) -> dict[str, Any]:
        """Return what was counted since the last call, for the manifest; counts of blocks are added."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that training may start from, on the CPU."""


@dataclass(frozen=True)
class PseudolabelSet:
    """Pseudo-labels as training reads them: masks by view and the labeller's state."""

    labels: Sequence[NDArray[np.int16]]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class TrainedHead:
    """What training gives: the heads of the model's chain, as types, fields and tensors.

    ``feature_heads`` map tokens to codes, one after the other; ``class_head`` maps codes to K classes.
    """

    class_head: dict[str, Any]
    tensors: dict[str, Tensor]
    feature_heads: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class HeadTask(Task, Protocol):
    """A training task that ends in heads; ``steps`` and ``batch`` (views) say how long it trains."""

    steps: int
    batch: int

    def finish(self) -> TrainedHead:
        """Choose the result by unsupervised criteria and return it."""
