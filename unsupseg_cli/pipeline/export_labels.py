"""export-labels: label maps of predictions in the formats of other programs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.files import whole_file
from unsupseg_cli.artifacts.outside import require_outside
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.label_maps import LabelMaps, read_outputs
from unsupseg_cli.contents.model import ClassEntry, class_index
from unsupseg_cli.contents.predictions import changed_since, images_still_there
from unsupseg_cli.contents.rasters import RASTERS
from unsupseg_cli.core.errors import UsageError, reason_of
from unsupseg_cli.core.layers import require_effect
from unsupseg_cli.core.words import are, counted
from unsupseg_cli.data.images import orientation_of, read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.exchange.labelled import Class, LabelledImage
from unsupseg_cli.exchange.table import Wishes, suffix_of, write
from unsupseg_cli.pipeline.inputs import take_artifact
from unsupseg_cli.pipeline.options import ExportLabelsConfig


def export_labels(
    config: ExportLabelsConfig, predictions: str | None = None, context: Context | None = None
) -> Path:
    """Write the label maps of predictions, at the size of their images, in a format; return its file or folder.

    Raises:
        UsageError: the file is there and ``context.force`` is not set, it cannot be written, its name does not fit the
            format, or the classes do not.
    """
    context = context or Context()
    require_effect(config)
    _require_out(config, context.force)
    artifact = take_artifact("predictions", predictions, context)
    images = LabelledImages(artifact, context)
    wishes = Wishes(
        _things(config, artifact, images.entries),
        config.min_area,
        config.url,
        config.bring_images,
        _rasters(artifact),
    )
    classes = [Class(entry.id, entry.name, entry.color) for entry in images.entries]
    if file := next((parent for parent in config.out.parents if parent.is_file()), None):
        raise UsageError(
            f"'{config.out}' cannot be written: '{file}' is a file, no folder; give another --out."
        )
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with (whole_file if suffix_of(config.format) else _whole_folder)(config.out) as unfinished:
            remarks = write(config.format, unfinished, classes, iter(images), wishes)
    except OSError as error:
        raise UsageError(
            f"'{config.out}' cannot be written ({reason_of(error)}); give another --out."
        ) from None
    for remark in [*images.remarks(), *remarks]:
        context.reporter.warn(remark)
    if (edited := changed_since(artifact, context)) is not None:
        context.reporter.warn(
            f"the classes are those of '{artifact.id}', and '{edited.id}' has others: `unsupseg classes apply "
            f"{artifact.id} --model {edited.id}`, then export what it makes"
        )
    what = f"label maps of {counted(len(images), 'image')}"
    if config.format in ("geojson", "gpkg"):
        what = f"polygons of {counted(len(wishes.rasters), 'GeoTIFF')}"
    context.reporter.info(f"'{artifact.id}': {what} as {config.format}")
    return config.out


class LabelledImages:
    """The label maps of predictions, one after the other, with the files of their images where these are there."""

    def __init__(self, predictions: Artifact, context: Context) -> None:
        summary = predictions.manifest.summary
        self._maps, self._context = LabelMaps(predictions.path), context
        self.entries = self._maps.classes
        self._keys = [key for key in summary["keys"] if key not in summary["skipped"]]
        self._skipped = len(summary["skipped"])
        self._items, self._changed = images_still_there(predictions, context)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[LabelledImage]:
        for key in self._context.reporter.track(self._keys, "export-labels", total=len(self._keys)):
            yield self._of(key)

    def _of(self, key: str) -> LabelledImage:
        item, labels = self._items.get(key), self._maps.read(key)
        if item is None:
            return LabelledImage(key, None, labels, changed=key in self._changed)
        pixels = partial(read_image, item.image, item.reading) if _is_part(item) else None
        return LabelledImage(key, item.image, labels, pixels=pixels)

    def remarks(self) -> list[str]:
        """Return what users of the files should know, a line each."""
        lines = []
        if self._skipped:
            has = " that could not be read has" if self._skipped == 1 else "s that could not be read have"
            lines.append(f"{self._skipped:,} image{has} no label map")
        there = (self._items[key] for key in self._keys if key in self._items)
        turned = sum(orientation_of(item.image) != 1 for item in there if not _is_part(item))
        if turned:
            lines.append(
                f"{counted(turned, 'image')} {are(turned)} turned by EXIF orientation: the labels are "
                "upright, and a program that reads stored pixels sees such images turned"
            )
        return lines


def _is_part(item: Item) -> bool:
    return item.reading is not None and item.reading.is_part


def _require_out(config: ExportLabelsConfig, force: bool) -> None:
    """Raise UsageError where the file or folder does not fit the format, or is there and may not be replaced."""
    out, suffix = config.out, suffix_of(config.format)
    require_outside(out)
    if suffix and (out.suffix.lower() != suffix or out.is_dir()):
        raise UsageError(
            f"{config.format} is one file: give --out a name that ends in {suffix}, not '{out}'."
        )
    if not suffix and out.is_file():
        raise UsageError(f"{config.format} is a folder of files, and '{out}' is a file; give another --out.")
    filled = any(out.iterdir()) if out.is_dir() else out.exists()
    if filled and not force:
        raise UsageError(f"'{out}' exists; give another --out, or --force to write over its files.")


def _rasters(predictions: Artifact) -> tuple[tuple[str, Path], ...]:
    folder = predictions.path / RASTERS
    return tuple(
        (path.relative_to(folder).as_posix(), path)
        for path in sorted(folder.rglob("*.tif"))
        if path.is_file()
    )


def _things(
    config: ExportLabelsConfig, predictions: Artifact, entries: Sequence[ClassEntry]
) -> frozenset[int] | None:
    if not config.things:
        return None
    outputs = read_outputs(predictions.path)
    return frozenset(class_index(reference, entries, outputs) for reference in config.things)


@contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """Yield another folder to fill, whose files come to ``path`` at the end; other files there stay."""
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield partial
        for file in [file for file in partial.rglob("*") if file.is_symlink() or file.is_file()]:
            target = path / file.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
