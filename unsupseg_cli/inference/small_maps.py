"""Small label maps of one size: what segmentations of the same images by several models are compared by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.features import FeatureSet, features_behind
from unsupseg_cli.contents.model import model_geometry, open_model
from unsupseg_cli.contents.skipped import Skipped
from unsupseg_cli.contents.stored_tokens import require_tokens
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.loader import resolve_workers
from unsupseg_cli.inference.segment import Segmented, segment_items, whole_images
from unsupseg_cli.inference.stored import segment_stored

SIDE = 64
"""Cells of a map's side, whatever the shape of the image."""


def small_maps(
    model: Artifact, items: Sequence[Item], context: Context, device: torch.device, workers: int | None = None
) -> dict[str, NDArray[np.int16]]:
    """Return the classes (SIDE, SIDE) of images by their keys, without those that are unreadable.

    The tokens that the model was trained on are read where they are of whole images; else its backbone runs.

    Args:
        model: segments the images.
        items: some of those that it was trained on.
        context: of the call.
        device: of the computation.
        workers: processes that decode images.
    """
    return {
        image.item.key: image.labels(SIDE, SIDE)
        for image in _segmented(model, items, context, device, workers)
    }


def _segmented(
    model: Artifact, items: Sequence[Item], context: Context, device: torch.device, workers: int | None
) -> Iterator[Segmented]:
    geometry = whole_images(model_geometry(model, context), None)
    skipped, reporter = Skipped(context), context.reporter
    features = features_behind(model, context) if model.input("features") else None
    if features is not None and (data := features.manifest.data) is not None:
        try:
            require_tokens(features, model, data, geometry, flip=False)
        except UsageError:  # crops, or codes of another model
            features = None
    segmenter = open_model(model, context, device, tokens=features).segmenter
    if features is None:
        yield from segment_items(
            segmenter,
            items,
            geometry,
            reporter,
            flip=False,
            workers=resolve_workers(workers),
            skipped=skipped,
        )
    else:
        yield from segment_stored(
            segmenter, FeatureSet(features), items, geometry, reporter, flip=False, skipped=skipped
        )
