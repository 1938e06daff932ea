"""predict: a model and images -> label maps at original size, and pictures of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.artifacts.arrays import write_array
from unsupseg_cli.artifacts.files import write_json
from unsupseg_cli.artifacts.manifest import DataSource, Manifest
from unsupseg_cli.artifacts.workspace import Artifact, Draft, Recipe
from unsupseg_cli.contents.images import (
    Context,
    describe_images,
    open_data,
    open_paths,
    resolve_device,
    resolve_workers,
    same_images,
)
from unsupseg_cli.contents.model import OpenModel, class_index, open_model
from unsupseg_cli.contents.model_file import take_model
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.data.datasets import Dataset, open_dataset
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import read_image
from unsupseg_cli.inference.segment import Segmented, segment_items
from unsupseg_cli.report.overlay import blend, legend
from unsupseg_cli.report.palette import paletted
from unsupseg_cli.stages.config import PredictConfig

STAGE_VERSION = 1
CLASSES = "classes.json"
_NAMED = "images"


def predict(
    config: PredictConfig,
    context: Context | None = None,
    *,
    images: Sequence[Path] = (),
    out: Path | None = None,
) -> Artifact:
    """Segment every image whole, at its original size; with ``out`` the files are also copied there.

    ``images`` are files or folders to take instead of a data set.

    The artifact holds, by the image's relative name: ``ids/*.png`` (pixel value = class number),
    ``color/*.png`` (paletted), ``overlay/*.jpg``, ``legend.png`` and ``classes.json``; with ``keep=scores``
    also log-probabilities at the working resolution.
    """
    context = context or Context()
    device = resolve_device(config.device)
    artifact = take_model(config.model, context)
    dataset = open_paths(images) if images else predict_dataset(config, artifact, context)
    model = open_model(artifact, context, device, weights=config.weights, precision=config.precision)
    only = None if config.only is None else class_index(config.only, model.file.classes)
    geometry = predict_geometry(config, model.geometry)
    precision = model.segmenter.backbone.precision
    data = describe_images(dataset, context)
    recipe = predict_recipe(config, data, artifact, geometry, precision, device, images)

    def work(draft: Draft) -> dict[str, Any]:
        draft.deterministic = device.type == "cpu"
        return _predict(draft, config, context, model, dataset, geometry, only)

    result, reused = context.workspace.produce(recipe, work, force=context.force)
    if out is not None:
        _copy_pictures(result, out)
    return context.say(result, reused)


def predict_dataset(config: PredictConfig, model: Artifact, context: Context) -> Dataset:
    """Return the images of a call: those of the model's own data set where none are named."""
    config = _with_dataset(config, model)
    return open_data(config, context, default_split=_default_split(config, model))


def predict_geometry(config: PredictConfig, trained: Geometry) -> Geometry:
    """Return the geometry of a call: whole images, at the size the model was trained with unless one is given."""
    size = trained.size if config.size is None else (config.size or None)
    return Geometry(kind="native", size=size, filter=trained.filter)


def predict_recipe(
    config: PredictConfig,
    data: DataSource,
    model: Artifact,
    geometry: Geometry,
    precision: str,
    device: torch.device,
    images: Sequence[Path] = (),
) -> Recipe:
    """Return what decides the predictions of a model; where ``images`` were named, they are remembered."""
    return Recipe(
        kind="predictions",
        stage="predict",
        stage_version=STAGE_VERSION,
        slug=f"{data.dataset}-{data.split}-{model.manifest.config['method']}",
        config={**config.result(), "size": geometry.size, "precision": precision},
        inputs=[model.as_input("model")],
        data=data,
        execution={
            "device": str(device),
            **({_NAMED: [str(Path.cwd() / one) for one in images]} if images else {}),
        },
        used_labels=model.manifest.used_labels,
    )


def predicted_images(predictions: Artifact, context: Context) -> dict[str, Path]:
    """Return the image file of each key of predictions.

    Raises:
        UsageError: the images are gone or are others by now.
    """
    m = predictions.manifest
    assert m.data is not None
    again = f"Predict again with --force, so that '{predictions.id}' knows where its images are."
    try:
        dataset = _predicted_dataset(m)
    except UsageError as error:
        raise UsageError(f"{error} {again}") from None
    keys = set(m.summary["keys"])
    dataset = replace(dataset, items=tuple(item for item in dataset.items if item.key in keys))
    if describe_images(dataset, context).fingerprint != m.data.fingerprint:
        raise UsageError(f"The images in '{dataset.root}' are not those that were predicted. {again}")
    return {item.key: item.image for item in dataset.items}


def named_images(predictions: Manifest) -> dict[str, list[str]]:
    """Return the files and folders that were given to `predict` one by one, under the name they are kept by."""
    return {_NAMED: predictions.execution[_NAMED]} if _NAMED in predictions.execution else {}


def _predicted_dataset(predictions: Manifest) -> Dataset:
    if named := named_images(predictions):
        return open_paths([Path(one) for one in named[_NAMED]])
    assert predictions.data is not None
    again = same_images(predictions.data)
    return open_dataset(again["dataset"], root=again["root"], split=predictions.data.split)


def _with_dataset(config: PredictConfig, model: Artifact) -> PredictConfig:
    """Take the data set of the model where none is named."""
    data = model.manifest.data
    if config.dataset is not None or data is None:
        return config
    return config.model_copy(update=same_images(data))


def _default_split(config: PredictConfig, model: Artifact) -> str | None:
    """Predict on the validation split of the model's own data set, unless another split is named."""
    data = model.manifest.data
    return "val" if data and data.split == "train" else None


def _predict(
    draft: Draft,
    config: PredictConfig,
    context: Context,
    model: OpenModel,
    dataset: Dataset,
    geometry: Geometry,
    only: int | None,
) -> dict[str, Any]:
    skipped: dict[str, str] = {}
    colors = np.array([entry.color for entry in model.file.classes], np.uint8)
    names = [entry.name for entry in model.file.classes]
    write_json(draft.folder / CLASSES, [entry.model_dump(mode="json") for entry in model.file.classes])
    write = picture_writer(draft.folder, draft.folder, only, config.overlay)
    todo = [item for item in dataset.items if not draft.is_done(_part(item.key))]
    for item in dataset.items:
        if draft.is_done(_part(item.key)) and (reason := draft.note(_part(item.key))):
            skipped[item.key] = reason
    segmented = segment_items(
        model.segmenter,
        todo,
        geometry,
        context.reporter,
        flip=config.flip,
        workers=resolve_workers(config.workers),
        tile=config.tile,
        overlap=config.overlap,
        strict=config.strict,
        skipped=skipped,
        description="predict",
    )
    for one in segmented:
        labels = one.labels(one.height, one.width)
        write_ids(draft.folder, one.item.key, labels)
        if config.keep == "scores":
            write_array(draft.folder / "scores" / one.item.key, _scores(one))
        write(one.item.key, read_image(one.item.image), labels)
        draft.finish(_part(one.item.key))
    done = len(dataset.items) - len(skipped)
    if not done:
        reason = next(iter(skipped.values()), "there are none")
        raise UnsupsegError(f"No image of '{dataset.root}' is readable; the first reason: {reason}")
    if skipped:
        draft.warnings.append(f"{len(skipped)} unreadable images were skipped; the manifest lists them")
    legend(names, colors).save(draft.folder / "legend.png")
    return {"images": done, "classes": len(names), "skipped": skipped, "keys": [i.key for i in dataset.items]}


def _part(key: str) -> str:
    return "image-" + key.replace("/", "%2F")


def _scores(one: Segmented) -> NDArray[np.float16]:
    log_probs = one.log_probs(one.view.height, one.view.width)
    return log_probs.numpy().astype(np.float16)


def write_ids(folder: Path, key: str, labels: NDArray[np.int16]) -> None:
    """Write class numbers as a gray PNG: 8 bit up to 255 classes (void 255), 16 bit beyond (void 65535)."""
    path = folder / "ids" / f"{key}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if labels.max(initial=0) < 255:
        image = Image.fromarray(np.where(labels == VOID, 255, labels).astype(np.uint8))
    else:
        image = Image.fromarray(np.where(labels == VOID, 65535, labels).astype(np.uint16))
    image.save(path)


def read_ids(folder: Path, key: str) -> NDArray[np.int16]:
    """Read what `write_ids` wrote, (H, W) with VOID = -1."""
    with Image.open(folder / "ids" / f"{key}.png") as image:
        raw = np.array(image)
    void = 255 if raw.dtype == np.uint8 else 65535
    return np.where(raw == void, VOID, raw.astype(np.int32)).astype(np.int16)


PictureWriter = Callable[[str, NDArray[np.uint8], NDArray[np.int16]], None]


def picture_writer(
    source: Path, target: Path, only: int | None = None, overlays: bool | None = None
) -> PictureWriter:
    """Return a function of (key, image, labels) that writes ``color`` and ``overlay`` pictures to ``target``.

    ``source`` holds ``classes.json``; without ``overlays`` they are written if ``source`` has some.
    """
    entries = json.loads((source / CLASSES).read_text(encoding="utf-8"))
    colors = np.array([entry["color"] for entry in entries], np.uint8)
    with_overlay = (source / "overlay").exists() if overlays is None else overlays

    def write(key: str, image: NDArray[np.uint8], labels: NDArray[np.int16]) -> None:
        shown = labels if only is None else np.where(labels == only, labels, np.int16(VOID))
        path = target / "color" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        paletted(shown, colors).save(path)
        if with_overlay:
            picture = target / "overlay" / f"{key}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(blend(image, shown, colors)).save(picture, quality=90)

    return write


def _copy_pictures(artifact: Artifact, out: Path) -> None:
    """Copy the readable files of predictions into a folder of the user's."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("ids", "color", "overlay"):
        if (artifact.path / name).exists():
            shutil.copytree(artifact.path / name, out / name, dirs_exist_ok=True)
    for name in ("legend.png", CLASSES):
        shutil.copy2(artifact.path / name, out / name)
