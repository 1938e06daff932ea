"""Predictions and labels, brought together image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray

from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.label_maps import LabelMaps
from unsupseg_cli.contents.model import OpenModel
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.crf.config import CRFConfig
from unsupseg_cli.data.datasets import Dataset
from unsupseg_cli.data.geometry import Geometry, View
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.labels import LabelSpace
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.inference.refinement import chunks, refine_labels
from unsupseg_cli.inference.segment import Segmented


@dataclass(frozen=True)
class Pair:
    """Prediction and truth of one image, at the size they are compared in; ``probed`` is the linear probe's.

    The image itself is read where it is asked for: scores need it for the CRF and for pictures only.
    """

    item: Item
    read: Callable[[], NDArray[np.uint8]]
    prediction: NDArray[np.int16]
    truth: NDArray[np.int16]
    probed: NDArray[np.int16] | None = None

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """The image (height, width, 3) as the prediction shows it."""
        return self.read()


def model_pairs(
    segmented: Iterator[Segmented],
    probe: OpenModel | None,
    space: LabelSpace,
    geometry: Geometry,
    *,
    crf: CRFConfig | None,
    device: torch.device,
    workers: int,
) -> Iterator[Pair]:
    """Yield prediction and truth of segmented images that have labels, as a protocol compares them.

    Args:
        segmented: the images, with what the model says.
        probe: the same model with a linear probe as its class head.
        space: the classes of the labels.
        geometry: of the protocol.
        crf: refines the predictions.
        device: where the CRF runs.
        workers: processes of the CRF.
    """
    for part in chunks(segmented, workers):
        pairs = [_pair(image, probe, space, geometry) for image in part]
        if crf is not None:
            # Rounded as `predict --keep scores` stores them, so that both ways give one figure.
            scores = [image.log_probs(image.view.height, image.view.width).half() for image in part]
            refined = refine_labels(scores, [pair.image for pair in pairs], crf, workers, device)
            pairs = [replace(pair, prediction=new) for pair, new in zip(pairs, refined, strict=True)]
        yield from pairs


def _pair(segmented: Segmented, probe: OpenModel | None, space: LabelSpace, geometry: Geometry) -> Pair:
    """Bring prediction and truth of an image together: at the original size, or as the geometry crops it."""
    truth = read_truth(segmented.item, space, (segmented.height, segmented.width))
    whole = geometry.kind == "native"
    if not whole:
        truth = geometry.render_label(truth, segmented.view)
    height, width = truth.shape
    probed = segmented.with_head(probe.require_codes()).labels(height, width) if probe else None
    read = partial(_shown, segmented.item, None if whole else segmented.view, geometry)
    return Pair(segmented.item, read, segmented.labels(height, width), truth, probed)


def _shown(item: Item, view: View | None, geometry: Geometry) -> NDArray[np.uint8]:
    """Return what a view shows of an image, or the image itself."""
    image = read_image(item.image, item.reading)
    return image if view is None else geometry.render(image, view)


def require_all_predicted(predictions: Artifact, dataset: Dataset) -> None:
    """Raise UsageError where predictions lack a labelled image."""
    predicted = set(predictions.manifest.summary["keys"]) - set(predictions.manifest.summary["skipped"])
    missing = [item.key for item in dataset.items if item.label is not None and item.key not in predicted]
    if missing:
        raise UsageError(
            f"The predictions '{predictions.id}' lack {len(missing)} labelled images of {dataset.name}/"
            f"{dataset.split} (first: '{missing[0]}'); predict that split, or name the right --split."
        )


def prediction_pairs(
    predictions: Artifact, items: Sequence[Item], space: LabelSpace, reporter: Reporter
) -> Iterator[Pair]:
    """Yield prediction and truth of labelled images."""
    maps = LabelMaps(predictions.path)
    for item in reporter.track(items, "eval", total=len(items)):
        labels = maps.read(item.key)
        truth = read_truth(item, space, (labels.shape[0], labels.shape[1]))
        yield Pair(item, partial(read_image, item.image, item.reading), labels, truth)
