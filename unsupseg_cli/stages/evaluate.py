"""eval: predictions against labels, under a named protocol."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.artifacts.files import write_json
from unsupseg_cli.artifacts.workspace import Artifact, Draft, Recipe
from unsupseg_cli.contents.images import (
    Context,
    describe_images,
    label_fingerprint,
    open_data,
    resolve_device,
    resolve_workers,
    same_images,
)
from unsupseg_cli.contents.model import OpenModel, open_model
from unsupseg_cli.contents.model_file import take_model
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.crf.config import CRFConfig
from unsupseg_cli.data.datasets import Dataset
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.labels import LabelSpace
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.diagnosis.linear_probe import fit_probe
from unsupseg_cli.inference.segment import Segmented, segment_items
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.matching import MatchingRule, match
from unsupseg_cli.metrics.per_image import PerImage
from unsupseg_cli.metrics.protocols import Protocol, get_protocol
from unsupseg_cli.metrics.scores import Scores, score
from unsupseg_cli.report.plots import confusion_figure, iou_figure, save
from unsupseg_cli.report.sheet import Sample, sheet
from unsupseg_cli.stages.config import EvalConfig
from unsupseg_cli.stages.predict import read_ids
from unsupseg_cli.stages.refine import chunks, refine_labels

STAGE_VERSION = 3
SCORES, ASSIGNMENT = "scores.json", "assignment.json"


@dataclass(frozen=True)
class Pair:
    """Prediction and truth of one image, at the size they are compared in; ``probed`` is the linear probe's."""

    item: Item
    image: NDArray[np.uint8]
    prediction: NDArray[np.int16]
    truth: NDArray[np.int16]
    probed: NDArray[np.int16] | None = None


def evaluate(config: EvalConfig, context: Context | None = None) -> Artifact:
    """Score a model (or predictions) on a labelled split; labels are read here and only here."""
    context = context or Context()
    predictions = context.take("predictions", config.predictions) if config.predictions else None
    artifact = predictions or take_model(config.model, context)
    dataset = evaluate_dataset(config, artifact, context)
    space = _require_labels(dataset)
    protocol = _protocol(config, dataset, predictions is not None)
    model = None
    if predictions is not None and config.crf:
        raise UsageError(
            "--crf needs a model; refine predictions with `unsupseg refine` and score the result."
        )
    if predictions is not None and config.linear_probe:
        raise UsageError("--linear-probe needs a model, not predictions; name one with --model.")
    if predictions is None:
        device = resolve_device(config.device)
        model = open_model(artifact, context, device, weights=config.weights, precision=config.precision)
    given = context.workspace.get(config.assignment, "evaluation") if config.assignment else None
    clusters = len(model.file.classes) if model else int(artifact.manifest.summary["classes"])
    precision = model.segmenter.backbone.precision if model else ""
    recipe = evaluate_recipe(config, dataset, artifact, given, precision, context)

    def work(draft: Draft) -> dict[str, Any]:
        if model is not None:
            probe = fit_probe(model, dataset, space, config, context) if config.linear_probe else None
            pairs = _model_pairs(model, probe, dataset, space, protocol, config, context, draft)
        else:
            pairs = _prediction_pairs(artifact, dataset, space, context)
        assignment = _read_assignment(given, clusters) if given else None
        summary = _score(draft, pairs, clusters, space, protocol, assignment, config)
        if dataset.unlabelled:
            draft.warnings.append(f"{len(dataset.unlabelled)} images without a label were left out")
        write_json(draft.folder / SCORES, summary)
        return summary

    result, reused = context.workspace.produce(recipe, work, force=context.force)
    return context.say(result, reused)


def evaluate_dataset(config: EvalConfig, scored: Artifact, context: Context) -> Dataset:
    """Return the images of a call: those of what is scored where none are named."""
    return open_data(_with_dataset(config, scored), context, default_split="val")


def evaluate_recipe(
    config: EvalConfig,
    dataset: Dataset,
    scored: Artifact,
    assignment: Artifact | None,
    precision: str,
    context: Context,
) -> Recipe:
    """Return what decides the scores of a model or of predictions."""
    space = _require_labels(dataset)
    protocol = _protocol(config, dataset, scored.manifest.kind == "predictions")
    return Recipe(
        kind="evaluation",
        stage="eval",
        stage_version=STAGE_VERSION,
        slug=f"{dataset.name}-{dataset.split}-{_method_of(scored, context)}-{protocol.name}",
        config={
            **config.result(),
            "protocol": protocol.describe(),
            "flip": protocol.flip,
            "matching": protocol.matching,
            "space": space.name,
            "precision": precision,
            "crf": CRFConfig().resolved().result() if config.crf else None,
        },
        inputs=[
            scored.as_input(scored.manifest.kind),
            *([assignment.as_input("assignment")] if assignment else []),
        ],
        data=describe_images(dataset, context),
        label_fingerprint=label_fingerprint(dataset.items, context),
        execution={"device": str(resolve_device(config.device))} if precision else {},
        used_labels=scored.manifest.used_labels or config.linear_probe,
    )


def _method_of(artifact: Artifact, context: Context) -> str:
    """Return method and number of classes of a model, or of the model behind predictions, for the name."""
    used = artifact.input("model")
    model = context.workspace.find_key("model", used.key) if used else artifact
    config = model.manifest.config if model else {}
    return f"{config.get('method', 'model')}{config.get('classes', '')}"


def _with_dataset(config: EvalConfig, artifact: Artifact) -> EvalConfig:
    """Take the data set of the model or predictions where none is named."""
    data = artifact.manifest.data
    if config.dataset is not None or data is None:
        return config
    known = same_images(data)
    if config.root is not None:
        known["root"] = config.root
    if artifact.manifest.kind == "predictions":
        known["split"] = config.split or data.split
    return config.model_copy(update=known)


def _require_labels(dataset: Dataset) -> LabelSpace:
    if dataset.space is None or not any(item.label for item in dataset.items):
        raise UsageError(
            f"'{dataset.root}' has no labels to score against: give --labels with a folder of label images and "
            "--class-file with the class names."
        )
    return dataset.space


def _protocol(config: EvalConfig, dataset: Dataset, from_predictions: bool) -> Protocol:
    name = dataset.protocol if config.protocol == "auto" else config.protocol
    protocol = get_protocol("native" if from_predictions and config.protocol == "auto" else name)
    if from_predictions and protocol.geometry != "native":
        raise UsageError(
            f"Predictions are label maps at original size and can be scored under the protocol 'native' only, not "
            f"'{protocol.name}'; score the model itself with --model."
        )
    flip = protocol.flip if config.flip is None else config.flip
    return replace(protocol, flip=flip, matching=config.matching or protocol.matching)


def _model_pairs(
    model: OpenModel,
    probe: OpenModel | None,
    dataset: Dataset,
    space: LabelSpace,
    protocol: Protocol,
    config: EvalConfig,
    context: Context,
    draft: Draft,
) -> Iterator[Pair]:
    geometry = protocol_geometry(protocol, model)
    skipped: dict[str, str] = {}
    segmented = segment_items(
        model.segmenter,
        [item for item in dataset.items if item.label is not None],
        geometry,
        context.reporter,
        flip=protocol.flip,
        workers=resolve_workers(config.workers),
        strict=config.strict,
        skipped=skipped,
        description="eval",
    )
    workers, device = resolve_workers(config.workers), resolve_device(config.device)
    crf = CRFConfig().resolved() if config.crf else None
    for part in chunks(segmented, workers):
        pairs = [_pair(one, probe, space, geometry) for one in part]
        if crf is not None:
            # Rounded as `predict --keep scores` stores them, so that both ways give one figure.
            scores = [one.log_probs(one.view.height, one.view.width).half() for one in part]
            refined = refine_labels(scores, [pair.image for pair in pairs], crf, workers, device)
            pairs = [replace(pair, prediction=new) for pair, new in zip(pairs, refined, strict=True)]
        yield from pairs
    if skipped:
        draft.warnings.append(
            f"{len(skipped)} unreadable images were left out: {', '.join(list(skipped)[:5])}"
        )


def _pair(one: Segmented, probe: OpenModel | None, space: LabelSpace, geometry: Geometry) -> Pair:
    """Bring prediction and truth of an image together: at the original size, or as the geometry crops it."""
    truth = read_truth(one.item, space, (one.height, one.width))
    image = one.image
    if geometry.kind == "native":
        image = read_image(one.item.image)
    else:
        truth = geometry.render_label(truth, one.view)
    height, width = truth.shape
    probed = one.with_head(probe.segmenter).labels(height, width) if probe else None
    return Pair(one.item, image, one.labels(height, width), truth, probed)


def protocol_geometry(protocol: Protocol, model: OpenModel) -> Geometry:
    """Return the geometry of a protocol; `native` works at the model's own size."""
    size = protocol.size or model.geometry.size
    image_filter = model.geometry.filter if protocol.geometry == "native" else protocol.filter
    return Geometry(kind=protocol.geometry, size=size, filter=image_filter)


def _prediction_pairs(
    predictions: Artifact, dataset: Dataset, space: LabelSpace, context: Context
) -> Iterator[Pair]:
    items = [item for item in dataset.items if item.label is not None]
    predicted = set(predictions.manifest.summary["keys"]) - set(predictions.manifest.summary["skipped"])
    missing = [item.key for item in items if item.key not in predicted]
    if missing:
        raise UsageError(
            f"The predictions '{predictions.id}' lack {len(missing)} labelled images of {dataset.name}/"
            f"{dataset.split} (first: '{missing[0]}'); predict that split, or name the right --split."
        )
    for item in context.reporter.track(items, "eval", total=len(items)):
        labels = read_ids(predictions.path, item.key)
        truth = read_truth(item, space, (labels.shape[0], labels.shape[1]))
        yield Pair(item, read_image(item.image), labels, truth)


def _read_assignment(evaluation: Artifact, clusters: int) -> NDArray[np.int64]:
    value = json.loads((evaluation.path / ASSIGNMENT).read_text(encoding="utf-8"))
    if len(value) != clusters:
        raise UsageError(
            f"The evaluation '{evaluation.id}' matches {len(value)} clusters, but there are {clusters} here."
        )
    return np.array(value, np.int64)


def _score(
    draft: Draft,
    pairs: Iterator[Pair],
    clusters: int,
    space: LabelSpace,
    protocol: Protocol,
    assignment: NDArray[np.int64] | None,
    config: EvalConfig,
) -> dict[str, Any]:
    """Accumulate the confusion matrix, match, score, and write tables and pictures."""
    classes = len(space.names)
    confusion, per_image = Confusion(clusters, classes), PerImage(clusters, classes)
    linear = Confusion(classes, classes)
    shown: list[Pair] = []
    count = 0
    for pair in pairs:
        confusion.update(pair.prediction, pair.truth)
        if pair.probed is not None:
            linear.update(pair.probed, pair.truth)
        if protocol.matching == "per-image":
            per_image.update(pair.prediction, pair.truth)
        count += 1
        _keep_spread(shown, pair, count, config.sheet)
    if not count:
        raise UnsupsegError("No labelled image could be read, so there is nothing to score.")
    if assignment is None:
        rule = "hungarian" if protocol.matching == "per-image" else protocol.matching
        assignment = match(confusion.matrix, cast("MatchingRule", rule))
    scores = score(confusion.matrix, assignment)
    summary = {
        "protocol": protocol.describe(),
        "crf": config.crf,
        "images": count,
        "clusters": clusters,
        "class_names": list(space.names),
        **scores.to_json(),
    }
    if linear.matrix.any():
        summary["linear_probe"] = score(linear.matrix, np.arange(classes)).to_json()
    if protocol.matching == "per-image":
        summary["per_image"] = per_image.compute().to_json()
    _write_tables(draft.folder, confusion.matrix, assignment, scores, space)
    chosen = np.linspace(0, len(shown) - 1, min(config.sheet, len(shown))).round().astype(int)
    _write_sheet(draft.folder, [shown[index] for index in chosen], assignment, space)
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


def _write_tables(
    folder: Path, matrix: Any, assignment: NDArray[np.int64], scores: Scores, space: LabelSpace
) -> None:
    write_json(folder / ASSIGNMENT, [int(value) for value in assignment])
    with (folder / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["cluster", "matched to", *space.names])
        for cluster, row in enumerate(np.asarray(matrix).tolist()):
            target = int(assignment[cluster])
            writer.writerow([cluster, space.names[target] if target >= 0 else "", *row])
    names, colors = list(space.names), np.array(space.colors, np.uint8)
    save(confusion_figure(scores.confusion, names), folder / "confusion.png")
    save(iou_figure(scores.iou, names, mean=scores.miou, colors=colors), folder / "iou.png")


def _write_sheet(folder: Path, shown: list[Pair], assignment: NDArray[np.int64], space: LabelSpace) -> None:
    """Write the sheet: image, overlay, prediction in the classes' colours, truth and errors."""
    samples = [
        Sample(pair.image, assignment[pair.prediction], pair.truth, name=pair.item.key) for pair in shown
    ]
    if samples:
        colors = np.array(space.colors, np.uint8)
        save(sheet(samples, colors, list(space.names)), folder / "sheet.png")
