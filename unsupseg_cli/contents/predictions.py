"""What a `predictions` artifact holds: label maps at original size, pictures, and scores where they are kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unsupseg_cli.artifacts.arrays import RowReader, write_array
from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.files import copy_files, whole_file, write_json
from unsupseg_cli.artifacts.manifest import Manifest
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.digests import file_digests, fingerprint
from unsupseg_cli.contents.images import describe_images, open_paths, read_as, reopen
from unsupseg_cli.contents.label_maps import (
    CLASSES,
    LabelMaps,
    colors_by_id,
    read_entries,
    read_ids,
    to_ids,
)
from unsupseg_cli.contents.model import ModelFile
from unsupseg_cli.contents.model_classes import classes_record
from unsupseg_cli.contents.rasters import RASTERS, world_files, write_rasters, write_whole_overlays
from unsupseg_cli.contents.skipped import Skipped
from unsupseg_cli.core.errors import UnsupsegError, UsageError, reason_of
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.names import file_name, file_path
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.core.shards import WHOLE, Shard
from unsupseg_cli.crf.trust import trusted
from unsupseg_cli.data.datasets import Dataset
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.rasters import has_rasterio, is_raster, valid_pixels
from unsupseg_cli.data.reading import Reading
from unsupseg_cli.report.overlay import blend, legend
from unsupseg_cli.report.palette import paletted

NAMED = "images"
_READABLE = ("ids", "color", "overlay", RASTERS)  # folders for people
_BESIDE = ("legend.png", CLASSES)


class PredictionWriter:
    """Writes the label map, the pictures and the scores of each image; a finished image survives a kill.

    Args:
        draft: of the artifact.
        model: whose classes the label maps have.
        dataset: the images.
        only: index of the one class that the pictures show; None shows all.
        overlay: also write the classes over the image.
        skipped: gets the images that cannot be read.
        shard: the images that are written here.
    """

    def __init__(
        self,
        draft: Draft,
        model: ModelFile,
        dataset: Dataset,
        only: int | None,
        overlay: bool,
        skipped: Skipped,
        shard: Shard = WHOLE,
    ) -> None:
        self._draft, self._classes, self._dataset, self._overlay = draft, model.classes, dataset, overlay
        self.skipped, self._shard = skipped, shard
        _require_own_names([item.key for item in dataset.items])
        write_json(draft.folder / CLASSES, classes_record(model))
        self._maps = LabelMaps(draft.folder, model.classes)
        self._picture = picture_writer(draft.folder, draft.folder, only, overlay)

    def todo(self) -> list[Item]:
        """Return the images of the shard that are not finished yet."""
        items = self._shard.take_images(self._dataset.items)
        return [item for item in items if not self._draft.is_done(image_part(item.key))]

    def write(
        self, item: Item, labels: NDArray[np.int16], log_probs: Tensor | None, *, strip: bool = False
    ) -> None:
        """Write the labels (H, W) of an image and, where they are kept, its log-probabilities (K, h, w).

        Labels are indices of the model's classes. Pixels that hold no data are void. ``strip`` says that the image was
        enlarged less than others.
        """
        labels = void_without_data(item, labels)
        files = [self._maps.write(item.key, labels)]
        if log_probs is not None:
            scores = self._draft.folder / "scores" / file_path(item.key)
            write_array(scores, log_probs.numpy().astype(np.float16))
            files += [path for path in scores.rglob("*") if path.is_file()]
        image = read_image(item.image, item.reading) if self._overlay else None
        files += self._picture(item.key, image, labels)
        files += world_files(self._draft.folder, item)
        self._draft.finish(image_part(item.key), {"strip": True} if strip else None, files)

    def leave_out(self) -> None:
        """Say which images of this shard are skipped."""
        for key, reason in self.skipped.items():
            if not self._draft.is_noted(image_part(key)):
                path = self._draft.folder / ".skipped" / f"{file_path(key)}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(reason, encoding="utf-8")  # a part is seen by other machines by its files
                self._draft.finish(image_part(key), {"skipped": reason}, [path])

    def missing(self) -> int:
        """Return how many images, of all shards, are not finished."""
        return sum(not self._draft.is_noted(image_part(item.key)) for item in self._dataset.items)

    def strips(self) -> list[str]:
        """Return the images that were enlarged less than others."""
        return list(self._noted("strip"))

    def _noted(self, what: str) -> dict[str, Any]:
        """Return what was noted under a name, by image."""
        notes = {item.key: self._draft.note(image_part(item.key)) or {} for item in self._dataset.items}
        return {key: note[what] for key, note in notes.items() if what in note}

    def close(self) -> dict[str, Any]:
        """Write the legend and return the summary; raises UnsupsegError if no image was readable."""
        self.skipped.update(self._noted("skipped"))
        written = len(self._dataset.items) - len(self.skipped)
        if not written:
            reason = next(iter(self.skipped.values()), "there are none")
            raise UnsupsegError(f"No image of '{self._dataset.root}' is readable; the first reason: {reason}")
        if self.skipped:
            self._draft.warnings.append(
                f"unreadable images skipped: {len(self.skipped)} ({', '.join(list(self.skipped)[:5])}); the manifest "
                "lists them"
            )
        bring_rasters(self._draft, self._dataset.items)
        rasters = write_rasters(
            self._draft.folder, self._dataset.items, self._classes, self.skipped, read_ids
        )
        self._draft.warnings.extend(rasters)
        write_whole_overlays(self._draft.folder, self._dataset.items, self.skipped)
        colors = np.array([entry.color for entry in self._classes], np.uint8)
        legend([entry.name for entry in self._classes], colors).save(self._draft.folder / "legend.png")
        return {
            "images": written,
            "classes": len(self._classes),
            "skipped": self.skipped,
            "keys": [item.key for item in self._dataset.items],
            "digests": dict(image_digests(self._dataset.items, self.skipped.context)),
        }


def bring_rasters(draft: Draft, items: Iterable[Item]) -> None:
    """See to it that what was made of windows and other parts of rasters is in the folder: it is put together."""
    for item in items:
        if is_raster(item.image):
            draft.bring(draft.files(image_part(item.key)))


def _require_own_names(keys: Sequence[str]) -> None:
    """Raise UsageError where the label maps of two images would have one name."""
    seen: dict[str, str] = {}
    for key in keys:
        if (other := seen.setdefault(file_path(key), key)) != key:
            raise UsageError(
                f"The results of '{other}' and '{key}' would have the same name '{file_path(key)}': rename one of them."
            )


def model_key(predictions: Artifact, context: Context) -> str | None:
    """Return the key of the model whose classes predictions have, before they were refined; None where it is gone."""
    seen: set[str] = set()  # a manifest that was changed by hand may name itself
    artifact: Artifact | None = predictions
    while artifact is not None and artifact.manifest.key not in seen:
        if (used := artifact.input("model")) is not None:
            return used.key
        seen.add(artifact.manifest.key)
        before = artifact.input("predictions")
        artifact = context.workspace.find_key("predictions", before.key) if before else None
    return None


def weights_behind(artifact: Artifact, context: Context) -> str | None:
    """Return the digest of the weights of a model, or of the one behind an artifact; None where that is gone.

    It is the same for all models that names, colours or merges were given to.
    """
    model: Artifact | None = artifact
    if artifact.manifest.kind != "model":
        key = model_key(artifact, context)
        model = context.workspace.find_key("model", key) if key else None
    return model.manifest.outputs["model.safetensors"].sha256 if model else None


def changed_since(predictions: Artifact, context: Context) -> Artifact | None:
    """Return the newest model whose names, colours or merges were changed since predictions; None where none were."""
    key = model_key(predictions, context)
    model = context.workspace.find_key("model", key) if key else None
    changed, newest = ({model.id} if model else set()), None
    for listed in context.workspace.listed("model"):
        artifact = listed.open()
        if artifact.manifest.execution.get("edited") in changed and artifact.id not in changed:
            changed.add(artifact.id)
            newest = artifact
    return newest


def image_part(key: str) -> str:
    """Return the name of the part of a draft that one image is."""
    return file_name("image-" + key.replace("%", "%25").replace("/", "%2F"))


def predicted_images(predictions: Artifact, context: Context) -> dict[str, Item]:
    """Return the image of each key of predictions; raises UsageError as `predicted_dataset`."""
    return {item.key: item for item in predicted_dataset(predictions, context).items}


def predicted_dataset(predictions: Artifact, context: Context) -> Dataset:
    """Return the images of predictions.

    Raises:
        UsageError: the images are gone or are others by now.
    """
    manifest = predictions.manifest
    assert manifest.data is not None
    advice = f"Bring the images of '{predictions.id}' back, or, where they were moved, predict them again with --force."
    try:
        dataset = _predicted_dataset(manifest, context)
    except UsageError as error:
        raise UsageError(f"{error} {advice}") from None
    keys = set(manifest.summary["keys"])
    dataset = replace(dataset, items=tuple(item for item in dataset.items if item.key in keys))
    if describe_images(dataset, context).fingerprint != manifest.data.fingerprint:
        raise UsageError(f"The images in '{dataset.root}' are not those that were predicted. {advice}")
    return dataset


def images_still_there(predictions: Artifact, context: Context) -> tuple[dict[str, Item], set[str]]:
    """Return the images of predictions by key that are there and as they were, and the keys of those that changed."""
    try:
        items = _predicted_dataset(predictions.manifest, context).items
        digests = predictions.manifest.summary.get("digests", {})
        now = dict(image_digests((item for item in items if item.key in digests), context))
    except UnsupsegError:
        return {}, set()
    same = {item.key: item for item in items if item.key in now and now[item.key] == digests[item.key]}
    return same, now.keys() - same.keys()


def image_digests(items: Iterable[Item], context: Context) -> list[list[str]]:
    """Return the key of each image and the digest of its file."""
    return file_digests(((item.key, item.image) for item in items), context)


def require_predicted(predictions: Artifact, items: Sequence[Item], context: Context) -> None:
    """Refuse images that are not the ones of the same name that were predicted.

    Raises:
        UsageError: some are others; the message names the first.
    """
    manifest = predictions.manifest
    assert manifest.data is not None
    digests = manifest.summary.get("digests")
    if digests is None:  # earlier versions remembered all images as one
        same = fingerprint(((item.key, item.image) for item in items), context) == manifest.data.fingerprint
        others = [] if same else [item.key for item in items]
    else:
        now = image_digests((item for item in items if item.key in digests), context)
        others = [key for key, digest in now if digests[key] != digest]
    if others:
        raise UsageError(
            f"{len(others)} of {len(items)} images are not those that '{predictions.id}' was made from (the first: "
            f"'{others[0]}'): predict these images, or name the --dataset and --split that were predicted."
        )


def named_images(predictions: Manifest) -> dict[str, list[str]]:
    """Return the files and folders that an earlier version of `predict` kept elsewhere than in ``data``."""
    return {NAMED: predictions.execution[NAMED]} if NAMED in predictions.execution else {}


def _predicted_dataset(predictions: Manifest, context: Context) -> Dataset:
    if named := named_images(predictions):
        assert predictions.data is not None
        dataset = open_paths([Path(name) for name in named[NAMED]], pages=predictions.data.pages)
        return read_as(dataset, Reading.from_json(predictions.data.reading))
    assert predictions.data is not None
    return reopen(predictions.data, context)


def void_without_data(item: Item, labels: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return labels (H, W) of an image that are void where a raster holds no data."""
    if not (has_rasterio() and is_raster(item.image)) or (item.reading and item.reading.page):
        return labels
    valid = valid_pixels(item.image, item.reading.window if item.reading else None)
    return labels if valid is None else np.where(valid, labels, np.int16(VOID))


PictureWriter = Callable[[str, NDArray[np.uint8] | None, NDArray[np.int16]], list[Path]]


def picture_writer(
    source: Path, target: Path, only: int | None = None, overlays: bool | None = None
) -> PictureWriter:
    """Return a function of (key, image, labels) that writes ``color`` and ``overlay`` pictures, and returns the files.

    Labels and ``only`` are indices of classes; values of ``color`` are ids. ``source`` holds ``classes.json``; without
    ``overlays`` they are written if ``source`` has some. The image may be None where they are not.
    """
    classes = read_entries(source)
    colors, palette = np.array([entry.color for entry in classes], np.uint8), colors_by_id(classes)
    with_overlay = (source / "overlay").exists() if overlays is None else overlays

    def write(key: str, image: NDArray[np.uint8] | None, labels: NDArray[np.int16]) -> list[Path]:
        shown = labels if only is None else np.where(labels == only, labels, np.int16(VOID))
        path = target / "color" / f"{file_path(key)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        paletted(to_ids(shown, classes), palette).save(path)
        written = [path]
        if with_overlay:
            assert image is not None
            picture = target / "overlay" / f"{file_path(key)}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(blend(image, shown, colors)).save(picture, quality=90)
            written.append(picture)
        return written

    return write


def require_no_others(out: Path) -> None:
    """Raise UsageError where a folder holds files that results would be written over, and that are none themselves."""
    there = [name for name in (*_READABLE, *_BESIDE) if (out / name).exists()]
    try:
        with_classes = bool(read_entries(out)) and (out / "ids").is_dir() and (out / "legend.png").is_file()
    except UnsupsegError:
        with_classes = False
    if there and not with_classes:
        raise UsageError(
            f"'{out}' holds '{there[0]}', which is not of the results of an earlier call and would be written over: "
            "name another folder with --out."
        )


def bring_pictures(predictions: Artifact, out: Path, reporter: Reporter) -> None:
    """Copy the readable files of predictions into a folder of the user's, and say what to look at there.

    Raises:
        UsageError: it is the folder of the images, or holds files of these names that are none of ours.
        UnsupsegError: it cannot be written.
    """
    data = predictions.manifest.data
    if data is not None and data.root and Path(data.root).resolve() == out.resolve():
        raise UsageError(f"'{out}' is the folder of the images: name another one with --out.")
    require_no_others(out)
    try:
        copy_pictures(predictions, out, reporter)
    except OSError as error:
        raise UnsupsegError(
            f"'{out}' cannot be written ({reason_of(error)}): free some space, or name another folder with --out; "
            f"all is in '{predictions.place}'."
        ) from None
    picture = out / ("overlay" if (predictions.path / "overlay").exists() else "color")
    rasters = f"; '{out / RASTERS}' is for map programs" if (predictions.path / RASTERS).exists() else ""
    reporter.info(f"copied to '{out}': look at '{picture}'{rasters}")


def copy_pictures(predictions: Artifact, out: Path, reporter: Reporter) -> None:
    """Copy the readable files of predictions into a folder; warn where others there change meaning."""
    out.mkdir(parents=True, exist_ok=True)
    older = _older_maps(predictions, out)
    if older:
        reporter.warn(
            f"'{out}' holds {len(older)} label maps of other classes (such as '{older[0]}'): its {CLASSES} and legend "
            f"now tell those of '{predictions.id}'; give another --out to keep both"
        )
    for name in _READABLE:
        copy_files(predictions.path / name, out / name)
    for name in _BESIDE:
        with whole_file(out / name) as partial:
            shutil.copyfile(predictions.path / name, partial)


def _older_maps(predictions: Artifact, out: Path) -> list[str]:
    """Return the label maps in a folder that stay there, and were made with other classes than those of predictions."""
    try:
        before = (out / CLASSES).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    if before == (predictions.path / CLASSES).read_text(encoding="utf-8"):
        return []
    there, new = (
        {path.relative_to(root / "ids").as_posix() for path in (root / "ids").rglob("*.png")}
        for root in (out, predictions.path)
    )
    return sorted(there - new)


class ScoreReader:
    """The scores of predictions by the image's key: those that were kept, or labels trusted so far.

    Args:
        predictions: the artifact.
        confidence: probability that a hard label is right; None where scores were kept.
    """

    def __init__(self, predictions: Artifact, confidence: float | None) -> None:
        self._predictions, self._confidence = predictions, confidence
        self._classes, self._maps = int(predictions.manifest.summary["classes"]), LabelMaps(predictions.path)

    def __call__(self, key: str) -> Tensor:
        """Return log-probabilities (K, h, w); raises UnsupsegError where they have another number of classes."""
        predictions = self._predictions
        folder = predictions.path / "scores" / file_path(key)
        if not folder.exists():
            assert self._confidence is not None
            labels = self._maps.read(key).astype(np.int64)
            return trusted(labels, self._classes, self._confidence)
        reader = RowReader(folder)
        if len(reader) != self._classes:
            raise UnsupsegError(
                f"The scores of '{key}' in '{predictions.id}' have {len(reader)} classes, expected {self._classes}; "
                f"run `unsupseg verify {predictions.id}` and predict again."
            )
        return torch.from_numpy(reader.rows(0, len(reader)))
