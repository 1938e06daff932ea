"""What the parts of a method are: a labeller gives masks, a trainer ends in a model: heads, or a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.progress import Reporter, Silent
from unsupseg_cli.training.all_tokens import OwnParts, Parts
from unsupseg_cli.training.live import Images, LiveSource
from unsupseg_cli.training.loop import Checkpoint, NoCheckpoint, Task
from unsupseg_cli.training.tokens import TokenSource


@dataclass(frozen=True)
class Masks:
    """The pseudo-masks of one view.

    ``labels`` (h, w) int16 holds mask ids from 0, -1 where no mask is; masks that overlap come in layers (L, h, w),
    each mask whole in one of them (`data.masks.to_layers`). ``area`` (cells), ``score`` in [0, 1]
    and ``group`` (class of the mask, -1 if the method gives none) have one entry per mask. ``soft`` (M + 1, h,
    w), where the method has it, holds log-probabilities of no mask and of each mask, on the token grid. ``arrays`` are
    any others that the method's trainer reads, of the same names and types in all views.
    """

    labels: NDArray[np.int16]
    area: NDArray[np.int64]
    score: NDArray[np.float32]
    group: NDArray[np.int64]
    soft: NDArray[np.float16] | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of_classes(
        cls, classes: Tensor, certainty: Tensor, arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> Masks:
        """Return a mask for each class that is somewhere in a view; its score is the mean certainty of its cells.

        Args:
            classes: (h, w) integers from 0.
            certainty: (h, w) in [0, 1].
            arrays: see the attributes.
        """
        group, labels = np.unique(classes.cpu().numpy(), return_inverse=True)
        labels = labels.reshape(classes.shape)
        area = np.bincount(labels.ravel(), minlength=len(group))
        score = np.bincount(labels.ravel(), certainty.cpu().numpy().ravel(), minlength=len(group)) / area
        return cls(labels.astype(np.int16), area, score.astype(np.float32), group, arrays=arrays or {})


@dataclass(frozen=True)
class MaskSet:
    """Pseudo-labels, or masks from outside, as a method reads them.

    ``labels`` are the label maps (h, w) int16 by view, of mask ids from 0, -1 where no mask is; of masks that overlap
    the one of higher score counts, of equal scores the smaller. ``groups`` is the class of each mask of a view, -1
    where there is none; ``state`` what the labeller left for training; ``masks`` gives every mask of a view whole,
    (M, h, w), and ``arrays`` what the labeller left of a view beside its masks, by name. ``scores`` are in [0, 1], as
    ``groups``; ``boxes`` gives left, top, right and bottom of each mask of a view in pixels of its image, (M, 4).
    """

    labels: Sequence[NDArray[np.int16]]
    groups: Sequence[NDArray[np.int64]]
    state: dict[str, Tensor]
    masks: Callable[[int], NDArray[np.bool_]] | None = None
    arrays: Callable[[int], Mapping[str, NDArray[Any]]] | None = None
    scores: Sequence[NDArray[np.float32]] = ()
    boxes: Callable[[int], NDArray[np.float64]] | None = None

    def whole(self, view: int) -> NDArray[np.bool_]:
        """Return every mask of a view, (M, h, w); those of a label map where there are no others."""
        if self.masks is not None:
            return self.masks(view)
        whole: NDArray[np.bool_] = self.labels[view] == np.arange(len(self.groups[view]))[:, None, None]
        return whole

    def classes(self, view: int) -> NDArray[np.int64]:
        """Return the class of each cell or pixel of a view, (h, w), -1 where there is none."""
        of_mask = np.append(self.groups[view], VOID)  # the last entry is that of label -1
        classes: NDArray[np.int64] = of_mask[self.labels[view]]
        return classes

    def require_classes(self, classes: int) -> None:
        """Raise UsageError where no mask has a class, or one has none of a model of K classes."""
        highest = max((int(groups.max(initial=VOID)) for groups in self.groups), default=VOID)
        if highest == VOID:
            raise UsageError(
                "The masks have no classes, which are what is learnt; give masks that were clustered, or filtered by a "
                "model."
            )
        if highest >= classes:
            raise UsageError(
                f"A mask is of class {highest}, and the model has {classes} classes (0 to {classes - 1}); ask for at "
                f"least --classes {highest + 1}."
            )


_ROWS = 4096  # of regions, read at a time


@dataclass(frozen=True)
class RegionSet:
    """Features of regions as a method reads them: a row for each region, those of an image one after the other.

    ``features`` gives their arrays (``cls``, ``pooled``); ``view`` (R,) is the view of the features that shows the
    region's image, the first where there are several; ``parent`` the row of the features or pseudo-labels that the
    region was found in, -1 where there is none; ``tag`` 1 for foreground and 0 for background of anchors, the level of
    a pyramid, or the number of the mask; ``box`` (R, 4) left, top, right, bottom in pixels of the image;
    ``same_network`` whether the network of the views' features embedded them; ``of_masks`` gives the rows of the
    regions that are crops of the masks of a view, where they are of the masks that are read beside them; ``shown``
    where some regions are in what their views show: left, top, right, bottom as shares of the sides, (M, 4).
    """

    features: TokenSource
    view: NDArray[np.int64]
    parent: NDArray[np.int64]
    tag: NDArray[np.int64]
    box: NDArray[np.float64]
    same_network: bool = True
    of_masks: Callable[[int], NDArray[np.int64]] | None = None
    shown: Callable[[NDArray[np.int64]], NDArray[np.float64]] | None = None

    def __len__(self) -> int:
        return len(self.view)

    def require_same_network(self) -> None:
        """Raise UsageError where another network than that of the views' features embedded the regions."""
        if not self.same_network:
            raise UsageError(
                "The regions were embedded by another backbone, weights, layer or model than the features; extract "
                "both with the same ones."
            )

    def rows(self, name: str, reporter: Reporter | None = None) -> Tensor:
        """Return ``cls`` or ``pooled`` of all regions, (R, C) float32; a reporter is told the progress."""
        return torch.cat(list(self.blocks(name, range(len(self)), reporter)))

    def blocks(self, name: str, rows: Sequence[int], reporter: Reporter | None = None) -> Iterator[Tensor]:
        """Yield ``cls`` or ``pooled`` of some regions in their order, (n, C) float32 at a time."""
        starts = range(0, len(rows), _ROWS)
        for start in (reporter or Silent()).track(starts, f"read {name} of regions", total=len(starts)):
            yield torch.stack(self.features.array(name, rows[start : start + _ROWS]))


Segment = Callable[[Sequence[int], Sequence[NDArray[np.uint8]]], list[Tensor]]
"""Views, and what they show (H, W, 3) -> log-probabilities (K, H, W) of a model, on the CPU."""
_GIVEN = ("classes", "seed", "images", "masks", "graph", "regions", "network", "model", "segment", "support")


class Inputs:
    """What a part is given: what it declared in its `Needs`. Reading anything else raises UnsupsegError.

    Args:
        features: the declared arrays of each view, on ``device``.
        device: where to compute.
        reporter: is told about the progress.
        parts: who makes which part of what `fit` learns of the whole collection.
        checkpoint: where a labeller that trains in `fit` keeps its state.
        given: the rest of what was declared, by the names of the properties; None where it is optional and not there.
    """

    def __init__(
        self,
        features: TokenSource,
        *,
        device: torch.device | None = None,
        reporter: Reporter | None = None,
        parts: Parts | None = None,
        checkpoint: Checkpoint | None = None,
        **given: Any,
    ) -> None:
        if unknown := given.keys() - _GIVEN:
            raise TypeError(f"Inputs has no '{min(unknown)}'; expected some of {', '.join(_GIVEN)}.")
        self.features, self.device = features, device or torch.device("cpu")
        self.reporter, self._given = reporter or Silent(), given
        self.parts, self.checkpoint = parts or OwnParts(self.reporter), checkpoint or NoCheckpoint()

    def _declared(self, name: str) -> Any:
        if name not in self._given:
            raise UnsupsegError(
                f"A method reads '{name}' without having declared it (declared: {', '.join(self._given) or 'nothing'}):"
                " name it in the `Needs` of the part."
            )
        return self._given[name]

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return int(self._declared("classes"))

    @property
    def seed(self) -> int:
        """Seed of every random choice."""
        return int(self._declared("seed"))

    @property
    def images(self) -> Images:
        """What some views show, each uint8 (H, W, 3)."""
        images: Images = self._declared("images")
        return images

    @property
    def masks(self) -> MaskSet | None:
        """The pseudo-labels of the views."""
        masks: MaskSet | None = self._declared("masks")
        return masks

    @property
    def graph(self) -> NDArray[np.int32] | None:
        """The nearest views of each view, (N, k)."""
        graph: NDArray[np.int32] | None = self._declared("graph")
        return graph

    @property
    def regions(self) -> RegionSet | None:
        """Features of regions of the images."""
        regions: RegionSet | None = self._declared("regions")
        return regions

    @property
    def support(self) -> RegionSet | None:
        """Features of regions of further images, which are clustered too; their ``view`` is -1."""
        support: RegionSet | None = self._declared("support")
        return support

    @property
    def network(self) -> LiveSource | None:
        """The frozen network that made the features; None on stored tokens."""
        network: LiveSource | None = self._declared("network")
        return network

    @property
    def model(self) -> Tensor | None:
        """The class prototypes (K, C) of a model: of the one named, or of the one whose codes the features are."""
        model: Tensor | None = self._declared("model")
        return model

    @property
    def segment(self) -> Segment:
        """What a model of any kind says of some views, where `Needs.model` is "scores"."""
        segment: Segment = self._declared("segment")
        return segment


class Labeller(ABC):
    """Features -> masks, computed where the tokens lie.

    Args:
        options: of the part.
        inputs: what it declared to need.
    """

    def __init__(self, options: Any, inputs: Inputs) -> None:
        self.options, self.inputs = options, inputs

    @property
    def fits_together(self) -> bool:
        """Whether `fit` learns through ``inputs.parts`` what takes long, so that all processes fit at once."""
        return False

    def fit(self) -> dict[str, Any]:
        """Learn what spans the whole collection (cluster centres, say); return figures for the manifest.

        ``mask_classes`` among them says how many classes masks can have, where it is not all.
        """
        return {}

    def learned(self) -> dict[str, Tensor]:
        """Return what `fit` learned, on the CPU, for `restore`."""
        return {}

    def restore(self, learned: Mapping[str, Tensor]) -> None:
        """Take what a `fit` learned, of this or of another process, in its place; without tensors of it, fit anew."""
        self.fit()

    @abstractmethod
    def label(self, views: Sequence[int]) -> list[Masks]:
        """Return the masks of some views: of the images' size where the part needs images, else of the token grid's."""

    def sizes(self) -> NDArray[np.int64] | None:
        """Return rows and columns of each view's masks, (N, 2), where they are others than `label` says."""
        return None

    def exemplars(self) -> list[list[int]]:
        """Return by class the rows of the regions nearest to its centre, nearest first; nothing without regions."""
        return []

    def exemplar_regions(self) -> RegionSet | None:
        """Return the regions whose rows `exemplars` gives."""
        return self.inputs.regions

    def figures(self) -> dict[str, Any]:
        """Return what was counted since the last call, for the manifest; counts of blocks are added."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a trainer may start from, on the CPU."""
        return {}


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

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return int(self.class_head["classes"])


@dataclass(frozen=True)
class TrainedNetwork:
    """What training gives where classes are not linear in codes: a `DenseNetwork`, as type, fields and tensors.

    ``network`` is ``{"type": NAME, "classes": K, ...fields}``; ``tensors`` is the network's ``state_dict``.
    """

    network: dict[str, Any]
    tensors: dict[str, Tensor]
    figures: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return int(self.network["classes"])


class Trainer(Task, ABC):
    """A training task that ends in a model; ``steps`` and ``batch`` (views) say how long it trains."""

    steps: int
    batch: int

    def __init__(self, options: Any, inputs: Inputs) -> None:
        self.options, self.inputs = options, inputs

    @abstractmethod
    def finish(self) -> TrainedHead | TrainedNetwork:
        """Choose the result by unsupervised criteria and return it."""
