"""Predictions against labels: bringing them together image by image, and scoring them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.evaluation import write_sheet, write_tables
from unsupseg_cli.contents.model import OpenModel
from unsupseg_cli.contents.predictions import read_ids
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.labels import OBJECTS, VOID
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.crf.config import CRFConfig
from unsupseg_cli.data.datasets import Dataset
from unsupseg_cli.data.geometry import Geometry, View
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.label_survey import remark_on_counts
from unsupseg_cli.data.labels import LabelSpace
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.inference.refinement import chunks, refine_labels
from unsupseg_cli.inference.segment import Segmented
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.matching import MatchingRule, match, scored
from unsupseg_cli.metrics.per_image import PerImage
from unsupseg_cli.metrics.protocols import Protocol
from unsupseg_cli.metrics.scores import score
from unsupseg_cli.report.sheet import Sample


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


def prediction_pairs(
    predictions: Artifact, dataset: Dataset, space: LabelSpace, reporter: Reporter
) -> Iterator[Pair]:
    """Yield prediction and truth of every labelled image; raises UsageError where predictions lack some."""
    items = [item for item in dataset.items if item.label is not None]
    predicted = set(predictions.manifest.summary["keys"]) - set(predictions.manifest.summary["skipped"])
    missing = [item.key for item in items if item.key not in predicted]
    if missing:
        raise UsageError(
            f"The predictions '{predictions.id}' lack {len(missing)} labelled images of {dataset.name}/"
            f"{dataset.split} (first: '{missing[0]}'); predict that split, or name the right --split."
        )
    for item in reporter.track(items, "eval", total=len(items)):
        labels = read_ids(predictions.path, item.key)
        truth = read_truth(item, space, (labels.shape[0], labels.shape[1]))
        yield Pair(item, partial(read_image, item.image, item.reading), labels, truth)


def score_pairs(
    folder: Path,
    pairs: Iterator[Pair],
    clusters: int,
    space: LabelSpace,
    protocol: Protocol,
    assignment: NDArray[np.int64] | None,
    sheet_size: int,
    warnings: list[str],
) -> dict[str, Any]:
    """Accumulate the confusion matrix, match, score, and write tables and pictures; return the summary.

    ``warnings`` gets lines about classes that never occur and much void.

    Raises:
        UnsupsegError: there is no pair.
    """
    classes = len(space.names)
    confusion, per_image = Confusion(clusters, classes), PerImage(clusters, classes)
    linear = Confusion(classes, classes)
    shown: list[Pair] = []
    count = void = 0
    for pair in pairs:
        confusion.update(pair.prediction, pair.truth)
        void += int((pair.truth == VOID).sum())
        if pair.probed is not None:
            linear.update(pair.probed, pair.truth)
        if protocol.matching == "per-image":
            per_image.update(pair.prediction, pair.truth)
        count += 1
        _keep_spread(shown, pair, count, sheet_size)
    if not count:
        raise UnsupsegError("No labelled image could be read, so there is nothing to score.")
    pixels = {VOID: void} | dict(enumerate(confusion.matrix.sum(0).tolist()))
    warnings += remark_on_counts(space, pixels)
    counts = confusion.matrix
    if assignment is None:
        rule = "hungarian" if protocol.matching == "per-image" else protocol.matching
        assignment = match(counts, cast("MatchingRule", rule))
        counts = scored(counts, rule)
        if dropped := int(confusion.matrix.sum() - counts.sum()):
            warnings.append(
                f"matching {rule} leaves out {dropped / confusion.matrix.sum():.1%} of the labelled pixels, those of "
                f"clusters from {classes} on: compare with scores of the same matching only"
            )
    scores = score(counts, assignment)
    summary = {
        "protocol": protocol.describe(),
        "images": count,
        "clusters": clusters,
        "class_names": list(space.names),
        **scores.to_json(),
    }
    if protocol.matching == OBJECTS:
        summary["hungarian"] = score(confusion.matrix, match(confusion.matrix)).to_json()
    if linear.matrix.any():
        summary["linear_probe"] = score(linear.matrix, np.arange(classes)).to_json()
    if protocol.matching == "per-image":
        summary["per_image"] = per_image.compute().to_json()
    write_tables(folder, confusion.matrix, assignment, scores, space)
    chosen = np.linspace(0, len(shown) - 1, min(sheet_size, len(shown))).round().astype(int)
    samples = [
        Sample(pair.image, assignment[pair.prediction], pair.truth, name=pair.item.key)
        for pair in (shown[index] for index in chosen)
    ]
    write_sheet(folder, samples, space)
    return summary


def _keep_spread(shown: list[Pair], pair: Pair, count: int, most: int) -> None:
    """Keep about evenly spread pairs: when the list is full, every second one goes and the stride doubles."""
    stride = 1
    while most and (count - 1) // stride >= 2 * most:
        stride *= 2
    if most and (count - 1) % stride == 0:
        if len(shown) >= 2 * most:
            del shown[1::2]
        shown.append(pair)
