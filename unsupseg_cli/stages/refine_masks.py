"""refine --pseudolabels: soft pseudo-masks -> pseudo-masks refined by a dense CRF."""

from __future__ import annotations

import shutil
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.artifacts.workspace import Artifact, Draft, Recipe
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.images import Context, resolve_device, resolve_workers
from unsupseg_cli.contents.masks import MASKS, STATE, LabelMaps, MaskWriter, SoftMasks, draw_masks
from unsupseg_cli.contents.views import ViewImages
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.interface import Masks
from unsupseg_cli.stages.config import RefineConfig
from unsupseg_cli.stages.refine import STAGE_VERSION, refine_labels, trusted


def refine_masks(config: RefineConfig, context: Context | None = None) -> Artifact:
    """Refine the masks of every view with what the view shows; the label maps get the views' size.

    Raises:
        UsageError: predictions were named as well, the pseudo-labels have no soft masks and no
            ``label_confidence`` is given, or their features are gone.
    """
    context = context or Context()
    if config.predictions is not None:
        raise UsageError("refine takes --predictions or --pseudolabels, not both.")
    labels = context.take("pseudolabels", config.pseudolabels)
    soft = has_soft_masks(labels)
    if not soft and config.label_confidence is None:
        raise UsageError(
            f"The pseudo-labels '{labels.id}' are hard masks; a CRF needs soft ones. Make them again with --keep "
            "soft, or say how far to trust them with --label-confidence 0.9."
        )
    used = labels.input("features")
    features = context.workspace.find_key("features", used.key) if used else None
    if features is None:
        raise UsageError(
            f"The features of the pseudo-labels '{labels.id}' are gone; run their `extract` again."
        )
    crf = config.crf()
    confidence = None if soft else config.label_confidence
    recipe = refine_masks_recipe(config, labels, features)

    def work(draft: Draft) -> dict[str, Any]:
        views = FeatureSet(features)
        images = ViewImages(views, context, config.workers)
        masks = _Masks(labels, views, confidence)
        device = resolve_device(config.device)
        writer = MaskWriter(draft, views, images.sizes, soft=False)
        shutil.copy2(labels.path / STATE, draft.folder / STATE)
        for block, some in writer.todo(context, "refine"):
            scores = [masks.log_probs(view) for view in some]
            refined = refine_labels(scores, images(some), crf, resolve_workers(config.workers), device)
            found = [masks.kept(view, one - 1) for view, one in zip(some, refined, strict=True)]
            writer.write(block, some, found, {})
        summary = writer.close()
        draw_masks(draft.folder, views, config.sheet, context)
        return summary

    result, reused = context.workspace.produce(recipe, work, force=context.force)
    return context.say(result, reused)


def refine_masks_recipe(config: RefineConfig, labels: Artifact, features: Artifact) -> Recipe:
    """Return what decides the refined pseudo-labels."""
    confidence = None if has_soft_masks(labels) else config.label_confidence
    return Recipe(
        kind="pseudolabels",
        stage="refine",
        stage_version=STAGE_VERSION,
        slug=f"{labels.id.rsplit('-', 1)[0]}-crf",
        config={**labels.manifest.config, "crf": config.crf().result(), "label_confidence": confidence},
        inputs=[labels.as_input("pseudolabels"), features.as_input("features")],
        data=labels.manifest.data,
        used_labels=labels.manifest.used_labels,
    )


def has_soft_masks(labels: Artifact) -> bool:
    """Tell whether pseudo-labels keep soft masks; refined ones do not."""
    return bool(labels.manifest.stage == "pseudolabel" and labels.manifest.config.get("keep") == "soft")


class _Masks:
    """The masks of some pseudo-labels by view, soft or trusted so far."""

    def __init__(self, labels: Artifact, features: FeatureSet, confidence: float | None) -> None:
        table = pq.read_table(labels.path / MASKS)
        first = np.searchsorted(table["view"].to_numpy(), np.arange(len(features) + 1))
        self._rows = [slice(start, stop) for start, stop in pairwise(first.tolist())]
        self._score, self._group = table["score"].to_numpy(), table["class"].to_numpy()
        self._confidence = confidence
        if confidence is None:
            self._soft = SoftMasks(labels, features.grids)
        else:
            self._labels = LabelMaps(labels)

    def log_probs(self, view: int) -> Tensor:
        """Return log-probabilities (M + 1, h, w): of no mask, and of each mask."""
        if self._confidence is None:
            return torch.from_numpy(self._soft[view])
        count = self._rows[view].stop - self._rows[view].start
        return trusted(self._labels[view].astype(np.int64) + 1, count + 1, self._confidence)

    def kept(self, view: int, labels: NDArray[np.int16]) -> Masks:
        """Return the masks that have pixels left in a new label map (H, W), numbered anew."""
        rows = self._rows[view]
        score, group = self._score[rows], self._group[rows]
        area = np.bincount(labels[labels >= 0], minlength=len(score)).astype(np.int64)
        kept = np.flatnonzero(area)
        number = np.full(len(score) + 1, -1, np.int16)  # the last entry is that of label -1
        number[kept] = np.arange(len(kept))
        return Masks(number[labels], area[kept], score[kept].astype(np.float32), group[kept].astype(np.int64))
