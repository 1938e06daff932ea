"""A picture of where each class of a model lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.outside import require_outside
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.label_maps import LabelMaps
from unsupseg_cli.contents.model import ModelFile
from unsupseg_cli.contents.predictions import model_key, predicted_images
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.report.overlay import blend
from unsupseg_cli.report.sheet import grid

_SHOWN = 4  # images of a class on the sheet
_CELL = 320  # width of one in pixels
_MARK = "unsupseg class sheet"


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
    shown = _predictions_of(model, context, predictions)
    keys = [key for key in shown.manifest.summary["keys"] if key not in shown.manifest.summary["skipped"]]
    classes, maps = len(file.classes), LabelMaps(shown.path)
    tracked = context.reporter.track(keys, "classes", total=len(keys))
    shares = np.stack([_shares(maps.read(key), classes) for key in tracked])
    images = predicted_images(shown, context)
    colors = np.array([entry.color for entry in file.classes], np.uint8)
    rows, notes = [], []
    for index, entry in enumerate(file.classes):
        order = np.argsort(-shares[:, index], kind="stable")[:_SHOWN]
        best = [keys[image] for image in order if shares[image, index] > 0]
        rows.append([_highlighted(maps.read(key), images[key], index, colors) for key in best])
        notes.append(f"{entry.id}   {entry.name}   {100 * shares[:, index].mean():.1f} % of the pixels")
    swatches = [entry.color for entry in file.classes]
    return grid(rows, labels=notes, swatches=swatches, title=f"{model.id}: where each class lies", cell=_CELL)


def save_class_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a class sheet as the kind of picture that the suffix names, with a mark that it is one."""
    mark = PngInfo()
    mark.add_text("Software", _MARK)
    sheet.save(path, pnginfo=mark, comment=_MARK)  # PNG takes the one, JPEG the other


def require_class_sheet(path: Path) -> None:
    """Raise UsageError where a file is there that is no class sheet, and would be written over."""
    require_outside(path)
    if path.is_dir():
        raise UsageError(
            f"'{path}' is a folder; name a picture with --out, such as '{path / 'classes.png'}'."
        )
    if path.exists() and _MARK.encode() not in path.read_bytes()[:2000]:
        raise UsageError(f"'{path}' is there and is no class sheet; name another picture with --out.")


def _predictions_of(model: Artifact, context: Context, reference: str | None) -> Artifact:
    """Return the predictions named, or the newest of a model; refined ones count too."""
    if reference is not None:
        candidates = [context.workspace.get(reference, "predictions")]
    else:
        candidates = sorted(
            context.workspace.artifacts("predictions"), key=lambda artifact: artifact.manifest.started
        )
    of_model = [candidate for candidate in candidates if model_key(candidate, context) == model.manifest.key]
    if not of_model and reference is not None:
        raise UsageError(f"The predictions '{candidates[0].id}' were not made by '{model.id}'.")
    if not of_model:
        raise UsageError(
            f"There are no predictions of '{model.id}' to make a sheet of; run `unsupseg predict --model {model.id}`; "
            "maps of the same training are not computed again."
        )
    return of_model[-1]


def _shares(labels: NDArray[np.int16], classes: int) -> NDArray[np.float64]:
    """Return the share of the pixels of a label map (H, W) that each class has, (K,)."""
    counts: NDArray[np.float64] = np.bincount(labels[labels != VOID], minlength=classes) / labels.size
    return counts


def _highlighted(
    labels: NDArray[np.int16], item: Item, index: int, colors: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return an image with one class lightly tinted and everything else gray."""
    image = read_image(item.image, item.reading)
    step = max(1, labels.shape[1] // (2 * _CELL))  # a large photo is seen in a small cell
    image, labels = image[::step, ::step], labels[::step, ::step]
    shown = labels == index
    gray = image.mean(-1, keepdims=True).astype(np.uint8)
    return blend(np.where(shown[..., None], image, gray), np.where(shown, index, VOID), colors, opacity=0.3)
