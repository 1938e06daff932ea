"""The folder of results that a person looks at: label maps, overlays, a sheet of images, a sheet of classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.class_sheet import class_sheet
from unsupseg_cli.contents.label_maps import CLASSES, LabelMaps
from unsupseg_cli.contents.model import read_model
from unsupseg_cli.contents.predictions import copy_pictures, predicted_images
from unsupseg_cli.contents.rasters import RASTERS
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.names import file_path
from unsupseg_cli.data.images import read_image
from unsupseg_cli.report.sheet import Sample, sheet

CLASS_SHEET, IMAGE_SHEET, REPORT = "classes.png", "sheet.png", "report.html"
_PICTURES = ("ids", "color", "overlay", RASTERS)
_OWN = {*_PICTURES, "legend.png", CLASSES, CLASS_SHEET, IMAGE_SHEET, REPORT}
_SAMPLES = 8  # images on the sheet
_CELL = 320  # width of a picture on the sheet in pixels


def require_own(out: Path) -> None:
    """Raise UsageError where a folder of results cannot be made, or holds what is none of ours."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"'{out}' is a file; name a folder for the results with --out.")
    try:
        names = (
            {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.exists() else set()
        )
    except OSError as error:
        raise UsageError(
            f"'{out}' cannot be opened ({error.strerror}); name another folder with --out."
        ) from None
    strange = sorted(names - _OWN)
    if strange or (names and not {CLASSES, "ids"} <= names):
        held = ", ".join(strange or sorted(names))[:80]
        raise UsageError(
            f"'{out}' holds other files than the results of an earlier call ({held}): name an empty or a new folder "
            "with --out."
        )


def write_results(predictions: Artifact, model: Artifact, out: Path, context: Context) -> None:
    """Write a folder of results; it appears whole, and one of an earlier call is written over.

    Args:
        predictions: the label maps and pictures.
        model: that made them.
        out: the folder; `require_own` has looked at it.
        context: is told about maps of an earlier call that stay.

    Raises:
        UnsupsegError: the folder cannot be written.
    """
    draft = out.absolute().parent / f".{out.absolute().name}.partial"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        class_sheet(model, read_model(model)[0], context, predictions.id).save(draft / CLASS_SHEET)
        image_sheet(predictions, model, context).save(draft / IMAGE_SHEET)
        copy_pictures(predictions, draft, context.reporter)
        if not out.exists():
            draft.rename(out)
            return
        _tell_of_others(predictions, out, context)
        shutil.copytree(draft, out, dirs_exist_ok=True)
        shutil.rmtree(draft)
    except OSError as error:
        raise UnsupsegError(
            f"The results cannot be written to '{out}' ({error.strerror or error}); they are in '{predictions.place}'."
        ) from None


def _tell_of_others(predictions: Artifact, out: Path, context: Context) -> None:
    """Warn of label maps of images that are not among these."""
    maps = {path.relative_to(out / "ids").as_posix() for path in (out / "ids").rglob("*.png")}
    strange = sorted(maps - {f"{file_path(key)}.png" for key in predictions.manifest.summary["keys"]})
    if strange:
        context.reporter.warn(
            f"'{out}' also holds {len(strange)} label maps of other images, from an earlier call (the first: "
            f"'{strange[0]}'): their classes are other ones"
        )


def image_sheet(predictions: Artifact, model: Artifact, context: Context) -> Image.Image:
    """Return a picture of some images, evenly chosen: image, overlay, classes, and the legend."""
    summary, entries = predictions.manifest.summary, read_model(model)[0].classes
    keys = [key for key in summary["keys"] if key not in summary["skipped"]]
    chosen = np.linspace(0, len(keys) - 1, min(_SAMPLES, len(keys))).round().astype(int)
    images, maps = predicted_images(predictions, context), LabelMaps(predictions.path)
    samples = []
    for key in (keys[index] for index in chosen):
        item, labels = images[key], maps.read(key)
        image, step = read_image(item.image, item.reading), max(1, labels.shape[1] // (2 * _CELL))
        samples.append(Sample(image[::step, ::step], labels[::step, ::step], name=key))
    colors = np.array([entry.color for entry in entries], np.uint8)
    return sheet(samples, colors, [entry.name for entry in entries], title=predictions.id, cell=_CELL)
