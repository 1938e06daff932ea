"""classes: the classes of a model get names and colours, or are merged; the result is a model of its own."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from unsupseg_cli.artifacts.workspace import Artifact, Draft, Recipe
from unsupseg_cli.contents.images import Context
from unsupseg_cli.contents.model import (
    BACKBONE,
    ModelFile,
    class_index,
    own_weights,
    read_model,
    write_model,
)
from unsupseg_cli.contents.model_file import take_model
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.data.images import read_image
from unsupseg_cli.report.overlay import blend
from unsupseg_cli.report.sheet import grid
from unsupseg_cli.stages.config import ClassesConfig
from unsupseg_cli.stages.predict import predicted_images, read_ids

STAGE_VERSION = 1
_SHOWN = 4  # images of a class on the sheet


def name_classes(config: ClassesConfig, names: Mapping[str, str], context: Context | None = None) -> Artifact:
    """Return a model whose classes, given by name or number, have new names.

    Raises:
        UsageError: there is no such class, or a name is empty, a number, taken, or holds ``=`` or a comma.
    """
    return _edit(config, context, lambda file: _named(file, names))


def color_classes(
    config: ClassesConfig, colors: Mapping[str, str], context: Context | None = None
) -> Artifact:
    """Return a model whose classes have new colours: ``#a0522d``, ``160,82,45`` or ``sienna``.

    Raises:
        UsageError: there is no such class or colour.
    """
    return _edit(config, context, lambda file: _colored(file, colors))


def merge_classes(
    config: ClassesConfig, groups: Sequence[Sequence[str]], context: Context | None = None
) -> Artifact:
    """Return a model in which each group of classes is one: the first of the group, under its name and colour.

    A pixel of one of them becomes a pixel of the merged class; no other pixel changes. The classes behind get lower
    numbers and keep their names.

    Raises:
        UsageError: there is no such class, a group has fewer than two, or a class is in two groups.
    """
    return _edit(config, context, lambda file: _merged(file, groups))


def classes_record(file: ModelFile) -> list[dict[str, Any]]:
    """Return number, name, colour and the outputs of the class head that make up each class."""
    outputs = file.class_of or list(range(len(file.classes)))
    return [
        {
            "number": index,
            "name": entry.name,
            "color": list(entry.color),
            "outputs": [output for output, one in enumerate(outputs) if one == index],
        }
        for index, entry in enumerate(file.classes)
    ]


def class_sheet(
    model: Artifact, file: ModelFile, context: Context, predictions: str | None = None
) -> Image.Image:
    """Return a picture with a row for each class: where it lies in the images that show most of it.

    Args:
        model: the model artifact.
        file: its chain.
        context: whose workspace holds predictions of the model.
        predictions: the ones to take; default: the newest.

    Raises:
        UsageError: there are no predictions of this model, or their images are gone.
    """
    found = _predictions_of(model, context, predictions)
    keys = [key for key in found.manifest.summary["keys"] if key not in found.manifest.summary["skipped"]]
    classes = len(file.classes)
    tracked = context.reporter.track(keys, "classes", total=len(keys))
    shares = np.stack([_shares(read_ids(found.path, key), classes) for key in tracked])
    images = predicted_images(found, context)
    colors = np.array([entry.color for entry in file.classes], np.uint8)
    rows, notes = [], []
    for index, entry in enumerate(file.classes):
        best = [
            one for one in np.argsort(-shares[:, index], kind="stable")[:_SHOWN] if shares[one, index] > 0
        ]
        rows.append([_highlighted(found, images, keys[one], index, colors) for one in best])
        notes.append(f"{index}   {entry.name}   {100 * shares[:, index].mean():.1f} % of the pixels")
    return grid(rows, labels=notes, title=f"{model.id}: where each class lies", cell=320)


def _edit(
    config: ClassesConfig, context: Context | None, change: Callable[[ModelFile], ModelFile]
) -> Artifact:
    """Write the model that ``change`` makes of the classes of another one; weights and inputs stay as they are."""
    context = context or Context()
    artifact = take_model(config.model, context)
    old, tensors = read_model(artifact)
    file = change(old)
    m = artifact.manifest
    classes = {
        "classes": len(file.classes),
        "entries": [entry.model_dump(mode="json") for entry in file.classes],
        "class_of": file.class_of,
    }
    recipe = Recipe(
        kind="model",
        stage="classes",
        stage_version=STAGE_VERSION,
        slug=f"{re.sub('-classes[0-9]+$', '', artifact.id.rsplit('-', 1)[0])}-classes{len(file.classes)}",
        config={**m.config, **classes},
        inputs=m.inputs,
        data=m.data,
        weights=m.outputs["model.safetensors"].sha256,
        execution={**m.execution, "edited": artifact.id},
        used_labels=m.used_labels,
    )

    def work(draft: Draft) -> dict[str, Any]:
        draft.deterministic = m.deterministic
        write_model(draft.folder, file, tensors)
        if own_weights(artifact):
            _copy_tree(artifact.path / BACKBONE, draft.folder / BACKBONE)
        return {"method": file.method, "classes": len(file.classes)}

    result, reused = context.workspace.produce(recipe, work, force=context.force)
    return context.say(result, reused)


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links where the disk has them: what an artifact holds is never written again."""
    shutil.rmtree(target, ignore_errors=True)
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except OSError:
        shutil.copytree(source, target, dirs_exist_ok=True)


def _named(file: ModelFile, names: Mapping[str, str]) -> ModelFile:
    classes = list(file.classes)
    for index, name in _by_index(file, names).items():
        if not name or name != name.strip() or not name.isprintable() or set(name) & {",", "="}:
            raise UsageError(f"'{name}' cannot be the name of a class: expected text without commas and '='.")
        if name.isdecimal():
            raise UsageError(
                f"'{name}' cannot be the name of a class: numbers mean the class of that number."
            )
        classes[index] = classes[index].model_copy(update={"name": name})
    taken = [entry.name for entry in classes]
    if twice := next((name for name in taken if taken.count(name) > 1), None):
        raise UsageError(f"Two classes would be called '{twice}'; merge them, or choose another name.")
    return file.model_copy(update={"classes": classes})


def _colored(file: ModelFile, colors: Mapping[str, str]) -> ModelFile:
    classes = list(file.classes)
    for index, text in _by_index(file, colors).items():
        classes[index] = classes[index].model_copy(update={"color": _color(text)})
    return file.model_copy(update={"classes": classes})


def _color(text: str) -> tuple[int, int, int]:
    try:
        parts = [int(part) for part in text.split(",")] if "," in text else ImageColor.getrgb(text)[:3]
    except ValueError:
        parts = []
    if len(parts) != 3 or not all(0 <= part <= 255 for part in parts):
        raise UsageError(f"'{text}' is no colour: expected such as #a0522d, 160,82,45 or sienna.")
    return parts[0], parts[1], parts[2]


def _by_index(file: ModelFile, values: Mapping[str, str]) -> dict[int, str]:
    """Return values by the number of their class."""
    found: dict[int, str] = {}
    for reference, value in values.items():
        index = class_index(reference, file.classes)
        if index in found:
            raise UsageError(f"Class {index}, '{file.classes[index].name}', is given twice.")
        found[index] = value
    if not found:
        raise UsageError("No class was given: expected CLASS=VALUE, such as 3=road.")
    return found


def _merged(file: ModelFile, groups: Sequence[Sequence[str]]) -> ModelFile:
    into = list(range(len(file.classes)))
    chosen = [[class_index(one, file.classes) for one in group] for group in groups]
    every = [index for group in chosen for index in group]
    if not chosen or any(len(group) < 2 for group in chosen):
        raise UsageError("A group to merge has at least two classes, separated by commas, such as 3,5.")
    twice = next((index for index in every if every.count(index) > 1), None)
    if twice is not None:
        raise UsageError(f"Class {twice}, '{file.classes[twice].name}', is given twice.")
    for first, *others in chosen:
        for index in others:
            into[index] = first
    kept = sorted(set(into))
    outputs = file.class_of or list(range(len(file.classes)))
    class_of = [kept.index(into[one]) for one in outputs]
    return file.model_copy(update={"classes": [file.classes[one] for one in kept], "class_of": class_of})


def _predictions_of(model: Artifact, context: Context, reference: str | None) -> Artifact:
    """Return the predictions named, or the newest of a model; refined ones count too."""
    if reference is not None:
        found = [context.workspace.get(reference, "predictions")]
    else:
        found = sorted(context.workspace.artifacts("predictions"), key=lambda one: one.manifest.started)
    own = [one for one in found if _predicted_by(one, context) == model.manifest.key]
    if not own and reference is not None:
        raise UsageError(f"The predictions '{found[0].id}' were not made by '{model.id}'.")
    if not own:
        raise UsageError(
            f"There are no predictions of '{model.id}' to make a sheet of; run `unsupseg predict --model {model.id}`."
        )
    return own[-1]


def _predicted_by(predictions: Artifact, context: Context) -> str | None:
    """Return the key of the model that made predictions, before they were refined."""
    if (used := predictions.input("model")) is not None:
        return used.key
    before = predictions.input("predictions")
    found = context.workspace.find_key("predictions", before.key) if before else None
    return _predicted_by(found, context) if found else None


def _shares(labels: NDArray[np.int16], classes: int) -> NDArray[np.float64]:
    """Return the share of the pixels of a label map (H, W) that each class has, (K,)."""
    counts: NDArray[np.float64] = np.bincount(labels[labels != VOID], minlength=classes) / labels.size
    return counts


def _highlighted(
    predictions: Artifact, images: Mapping[str, Path], key: str, index: int, colors: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return an image with one class lightly tinted and everything else gray."""
    image, labels = read_image(images[key]), read_ids(predictions.path, key)
    shown = labels == index
    gray = image.mean(-1, keepdims=True).astype(np.uint8)
    return blend(np.where(shown[..., None], image, gray), np.where(shown, index, VOID), colors, opacity=0.3)
