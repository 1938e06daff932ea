"""Images of its training as a model segments them: as small maps, or with the tokens under each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
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
        for image in segment_trained(model, items, context, device, workers)
    }


def tokens_by_class(
    model: Artifact, items: Sequence[Item], classes: int, context: Context, device: torch.device
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the sum of the unit tokens under each class (K, C), and their number (K,).

    Args:
        model: whose classes they are.
        items: some of the images that it was trained on.
        classes: number of its classes, K.
        context: of the call.
        device: of the computation.

    Raises:
        UsageError: the model has no features of whole images.
    """
    features = FeatureSet(features_behind(model, context))
    keys = features.views["key"]
    if len(set(keys)) < len(keys):
        raise UsageError(
            f"The features of '{model.id}' have several views of an image, and classes are compared by those of whole "
            "images: name the groups instead."
        )
    rows = {key: row for row, key in enumerate(keys)}
    sums, counts = np.zeros((classes, features.dim)), np.zeros(classes, np.int64)
    for image in segment_trained(model, items, context, device):
        (tokens,) = features.tokens([rows[image.item.key]])
        labels = image.labels(*tokens.shape[:2]).ravel().astype(np.int64)
        unit = F.normalize(tokens.flatten(0, 1), dim=-1).double().numpy()
        np.add.at(sums, labels, unit)
        counts += np.bincount(labels, minlength=classes)
    return sums, counts


def segment_trained(
    model: Artifact,
    items: Sequence[Item],
    context: Context,
    device: torch.device,
    workers: int | None = None,
) -> Iterator[Segmented]:
    """Segment whole images that a model was trained on, by stored tokens where they are of whole images."""
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
