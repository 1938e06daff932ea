"""The folder of results that a person looks at: label maps, overlays, a sheet of images, a sheet of classes."""

from __future__ import annotations

import json
import shutil
from filecmp import cmp
from pathlib import Path

import numpy as np
from PIL import Image

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.files import copy_files
from unsupseg_cli.artifacts.outside import require_outside
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.applied_classes import reader_of
from unsupseg_cli.contents.class_sheet import class_sheet, save_class_sheet
from unsupseg_cli.contents.label_maps import CLASSES, LabelMaps
from unsupseg_cli.contents.model import read_model
from unsupseg_cli.contents.model_classes import classes_record
from unsupseg_cli.contents.predictions import copy_pictures, predicted_images
from unsupseg_cli.contents.rasters import RASTERS
from unsupseg_cli.core.errors import UnsupsegError, UsageError, reason_of
from unsupseg_cli.core.names import file_path
from unsupseg_cli.core.words import counted
from unsupseg_cli.data.images import read_image
from unsupseg_cli.report.sheet import Sample, sheet

CLASS_SHEET, IMAGE_SHEET, REPORT = "classes.png", "sheet.png", "report.html"
_PICTURES = ("ids", "color", "overlay", RASTERS)
_OWN = {*_PICTURES, "legend.png", CLASSES, CLASS_SHEET, IMAGE_SHEET, REPORT}
_SAMPLES = 8  # images on the sheet
_COMPARED = 8  # label maps that tell whose a folder is
_CELL = 320  # width of a picture on the sheet in pixels


def require_own(out: Path) -> None:
    """Raise UsageError where a folder of results cannot be made, or holds what is none of ours."""
    require_outside(out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"'{out}' is a file; name a folder for the results with --out.")
    try:
        names = (
            {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.exists() else set()
        )
    except OSError as error:
        raise UsageError(
            f"'{out}' cannot be opened ({reason_of(error)}); name another folder with --out."
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
        save_class_sheet(
            class_sheet(model, read_model(model)[0], context, predictions.id), draft / CLASS_SHEET
        )
        image_sheet(predictions, model, context).save(draft / IMAGE_SHEET)
        copy_pictures(predictions, draft, context.reporter)
        if not out.exists():
            draft.rename(out)
            return
        _tell_of_others(predictions, out, context)
        copy_files(draft, out)
    except OSError as error:
        raise UnsupsegError(
            f"The results cannot be written to '{out}' ({reason_of(error)}); they are in '{predictions.place}'."
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _tell_of_others(predictions: Artifact, out: Path, context: Context) -> None:
    """Warn of label maps of images that are not among these."""
    if strange := _other_maps(predictions, out):
        context.reporter.warn(
            f"'{out}' also holds {counted(len(strange), 'label map')} of other images, from an earlier call (the "
            f"first: '{strange[0]}'): their classes are other ones"
        )


def require_same_images(predictions: Artifact, out: Path) -> None:
    """Raise UsageError where a folder of results holds label maps of other images than those of predictions."""
    if strange := _other_maps(predictions, out):
        raise UsageError(
            f"'{out}' holds label maps of other images than '{predictions.id}' (the first: '{strange[0]}'), which "
            "would keep their classes: name the predictions that it was made from, or another folder."
        )


def _other_maps(predictions: Artifact, out: Path) -> list[str]:
    return sorted(_maps(out) - {f"{file_path(key)}.png" for key in predictions.manifest.summary["keys"]})


def _maps(folder: Path) -> set[str]:
    """Return the label maps in a folder, relative to ``ids``."""
    return {path.relative_to(folder / "ids").as_posix() for path in (folder / "ids").rglob("*.png")}


def find_source(out: Path, context: Context) -> Artifact | None:
    """Return the newest predictions whose label maps are those of a folder of results; None where there are none."""
    maps = _maps(out) if (out / CLASS_SHEET).exists() else set()
    if not maps:
        return None
    some = sorted(maps)[:: -(-len(maps) // _COMPARED)]
    for listed in reversed(context.workspace.listed("predictions")):
        predictions = listed.open()
        summary = predictions.manifest.summary
        keys = {f"{file_path(key)}.png" for key in summary["keys"] if key not in summary["skipped"]}
        if keys == maps and all(
            cmp(predictions.path / "ids" / name, out / "ids" / name, shallow=False) for name in some
        ):
            return predictions
    return None


def tell_of_lost_names(predictions: Artifact, out: Path, context: Context) -> None:
    """Warn where a folder of results told the same clusters under other classes, and say how to have these again."""
    try:
        before, now = (json.loads((of / CLASSES).read_text("utf-8")) for of in (out, predictions.path))
        names = ", ".join(str(entry["name"]) for entry in before)[:80]
    except (OSError, ValueError, TypeError, KeyError):  # no folder of results yet
        return
    for listed in reversed(context.workspace.listed("model") if before != now else []):
        model = listed.open()
        if classes_record(read_model(model)[0]) != before:
            continue
        try:
            reader_of(predictions, model, context)
        except UsageError:
            continue
        context.reporter.warn(
            f"'{out}' told the classes of '{model.id}' ({names}) and now tells those of '{predictions.id}': `unsupseg "
            f"classes apply {predictions.id} --model {model.id} --out '{out}'` brings them back"
        )
        return


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
