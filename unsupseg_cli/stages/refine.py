"""refine: predictions with scores -> predictions refined by a dense CRF."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.artifacts.arrays import RowReader
from unsupseg_cli.artifacts.workspace import Artifact, Draft, Recipe
from unsupseg_cli.contents.images import Context, resolve_device, resolve_workers
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.crf import CRFConfig, refine_batch
from unsupseg_cli.data.images import read_image
from unsupseg_cli.stages.config import RefineConfig
from unsupseg_cli.stages.predict import (
    CLASSES,
    named_images,
    picture_writer,
    predicted_images,
    read_ids,
    write_ids,
)

STAGE_VERSION = 3
T = TypeVar("T")


def refine(config: RefineConfig, context: Context | None = None) -> Artifact:
    """Refine label maps with the image they belong to.

    Raises:
        UsageError: the predictions have no scores and no ``label_confidence`` is given.
    """
    context = context or Context()
    predictions = context.take("predictions", config.predictions)
    scored = has_scores(predictions)
    if not scored and config.label_confidence is None:
        raise UsageError(
            f"The predictions '{predictions.id}' are hard labels; a CRF needs soft scores. Predict again with "
            "--keep scores, or say how far to trust the labels with --label-confidence 0.9."
        )
    crf = config.crf()
    recipe = refine_recipe(config, predictions)

    def work(draft: Draft) -> dict[str, Any]:
        summary = predictions.manifest.summary
        files = predicted_images(predictions, context)
        todo = [
            key for key in summary["keys"] if key not in summary["skipped"] and not draft.is_done(_part(key))
        ]
        workers, device = resolve_workers(config.workers), resolve_device(config.device)
        tracked = context.reporter.track(todo, "refine", total=len(todo))
        write = picture_writer(predictions.path, draft.folder)
        for keys in chunks(tracked, workers):
            images = [read_image(files[key]) for key in keys]
            scores = [_scores(predictions, key, config.label_confidence, summary["classes"]) for key in keys]
            for key, image, labels in zip(
                keys, images, refine_labels(scores, images, crf, workers, device), strict=True
            ):
                write_ids(draft.folder, key, labels)
                write(key, image, labels)
                draft.finish(_part(key))
        for name in ("legend.png", CLASSES):
            shutil.copy2(predictions.path / name, draft.folder / name)
        return {name: summary[name] for name in ("images", "classes", "skipped", "keys")}

    result, reused = context.workspace.produce(recipe, work, force=context.force)
    return context.say(result, reused)


def refine_recipe(config: RefineConfig, predictions: Artifact) -> Recipe:
    """Return what decides the refined predictions."""
    confidence = None if has_scores(predictions) else config.label_confidence
    return Recipe(
        kind="predictions",
        stage="refine",
        stage_version=STAGE_VERSION,
        slug=f"{predictions.id.rsplit('-', 1)[0]}-crf",
        config={**config.crf().result(), "label_confidence": confidence},
        inputs=[predictions.as_input("predictions")],
        data=predictions.manifest.data,
        execution={"device": config.device, **named_images(predictions.manifest)},
        used_labels=predictions.manifest.used_labels,
    )


def has_scores(predictions: Artifact) -> bool:
    """Tell whether predictions keep soft scores beside their labels."""
    return bool(predictions.manifest.config.get("keep") == "scores")


def refine_labels(
    log_probs: list[Tensor],
    images: list[NDArray[np.uint8]],
    config: CRFConfig,
    workers: int,
    device: torch.device | None = None,
) -> list[NDArray[np.int16]]:
    """Return the classes (H, W) of images (H, W, 3) after the CRF, from log-probabilities (K, h, w) float16."""
    scores = [one.to(device).float() for one in log_probs]
    refined = refine_batch(scores, images, config, max(1, workers))
    return [one.argmax(0).to(torch.int16).numpy() for one in refined]


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of up to ``size`` items (at least one)."""
    iterator = iter(items)
    while part := list(islice(iterator, max(1, size))):
        yield part


def _part(key: str) -> str:
    return "image-" + key.replace("/", "%2F")


def _scores(predictions: Artifact, key: str, confidence: float | None, classes: int) -> Tensor:
    """Return log-probabilities (K, h, w): the stored ones, or those of labels trusted so far."""
    folder = predictions.path / "scores" / key
    if folder.exists():
        reader = RowReader(folder)
        if len(reader) != classes:
            raise UnsupsegError(
                f"The scores of '{key}' in '{predictions.id}' have {len(reader)} classes, expected {classes}; run "
                f"`unsupseg verify {predictions.id}` and predict again."
            )
        return torch.from_numpy(reader.rows(0, len(reader)))
    assert confidence is not None
    return trusted(read_ids(predictions.path, key).astype(np.int64), classes, confidence)


def trusted(labels: NDArray[np.int64], classes: int, confidence: float) -> Tensor:
    """Return log-probabilities (K, h, w) of labels (h, w) that are right with this probability; -1 is unknown."""
    known = torch.from_numpy(labels)
    rest = (1 - confidence) / max(1, classes - 1)
    probability = torch.full((classes, *known.shape), rest)
    probability.scatter_(0, known.clamp_min(0)[None], confidence)
    probability[:, known < 0] = 1 / classes
    return (probability / probability.sum(0)).log()
