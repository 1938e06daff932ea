"""predict: A model and images -> label maps and pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.core.bounds import LONGEST_SIDE
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.options import BatchConfig, DividedConfig, NamedImagesConfig, Precision
from unsupseg_cli.core.ports import MODEL, STORED
from unsupseg_cli.core.shards import parse_shard
from unsupseg_cli.crf.config import LONGEST_SIDE as CRF_SIDE
from unsupseg_cli.crf.config import CRFConfig
from unsupseg_cli.pipeline.model_input import opened_model
from unsupseg_cli.pipeline.stage import Call, Foreseen, Stage, once

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.contents.predictions import PredictionWriter
    from unsupseg_cli.data.datasets import Dataset
    from unsupseg_cli.data.geometry import Geometry
    from unsupseg_cli.inference.segment import Segmented


class PredictConfig(NamedImagesConfig, BatchConfig, DividedConfig):
    """Segment images with a model: whole image, original size, any aspect ratio."""

    model: str | None = execution(None, "Model artifact, or a file of `export`; default: the last one.")
    features: str | None = execution(
        None,
        "Features of the split that is predicted: their tokens are read and no backbone runs. Scores agree to the "
        "rounding of stored tokens.",
    )
    split: str | None = execution(
        None,
        "Part of the data set; default: val where the model was trained on train, else the first; with --features "
        "theirs.",
    )
    out: Path | None = execution(None, "Also copy the label maps and pictures here.", short="-o")
    weights: Path | None = execution(None, "Weights file of the model's backbone, where it is not found.")
    size: int | None = setting(
        None, "Shorter side in pixels; 0 keeps the image's. Default: as trained.", ge=0, le=LONGEST_SIDE
    )
    flip: bool = setting(False, "Average the image with its mirror image.")
    crf: bool = setting(
        False, f"Refine with the dense CRF; images longer than {CRF_SIDE} pixels are refined at that length."
    )
    tile: int | None = setting(None, "Side of a tile in pixels; default: tiles only for large images.", ge=32)
    overlap: float = setting(0.25, "Share of a tile or window that its neighbour covers too.", ge=0, le=0.9)
    keep: Literal["labels", "scores"] = setting(
        "labels", "What is stored: labels, or scores (log-probabilities) as well."
    )
    overlay: bool = setting(True, "Also write pictures: the classes over the image, with a legend.")
    only: str | None = setting(None, "Show only this class (name or id) in the pictures.")
    precision: Precision = setting("auto", "Arithmetic of the backbone, or of a network without one.")

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of a data set where images are named, and of a backbone where tokens are read."""
        unread = self.unread_of_images() | self.unread_of_executor()
        if self.images:
            unread["features"] = "they are of a data set, and images or folders are named"
        if self.features is not None:
            options = ("weights", "precision", "batch_size", "tile", "overlap")
            unread |= dict.fromkeys(options, "tokens are read, no backbone runs")
        return unread


def identify(call: Call) -> Identity:
    """Return what decides the predictions; where images were named, the manifest remembers which."""
    from unsupseg_cli.contents.images import identify_images
    from unsupseg_cli.contents.rasters import raster_config
    from unsupseg_cli.contents.stored_tokens import require_tokens
    from unsupseg_cli.models.backbone import resolve_precision
    from unsupseg_cli.models.device import resolve_device

    config, model, device = call.config, call.input("model"), resolve_device(call.config.device)
    data = identify_images(_dataset(call), call.context)
    if "features" in call.inputs:
        require_tokens(call.input("features"), model, data, _geometry(call), flip=config.flip)
    if not call.context.read_only:
        _shown_class(call)  # a class that is not there is said before any work
    return Identity(
        kind="predictions",
        stage="predict",
        stage_version=STAGE.version,
        slug=f"{data.dataset}-{data.split}-{model.manifest.config['method']}",
        config={
            **_settings(config),
            "size": _geometry(call).size,
            "precision": "" if "features" in call.inputs else resolve_precision(config.precision, device),
            **raster_config(_dataset(call).items),
        },
        inputs=call.described(),
        data=data,
        execution={"device": str(device), **_batch(config)},
        used_labels=call.used_labels,
    )


def _settings(config: PredictConfig) -> dict[str, Any]:
    """Return the settings that decide the maps; those of before the CRF have the keys that they had."""
    settings = config.result()
    return settings | {"crf": CRFConfig().resolved().result()} if settings.pop("crf") else settings


def _batch(config: PredictConfig) -> dict[str, int]:
    return {} if config.batch_size is None else {"batch_size": config.batch_size}


def parts(call: Call, draft: Draft) -> _Prediction:
    """Open the work of segmenting every image whole, at its original size; each finished image survives a kill.

    The artifact holds, by the image's relative name: ``ids/*.png`` (pixel value = class id),
    ``color/*.png`` (paletted), ``overlay/*.jpg``, ``legend.png`` and ``classes.json``; of georeferenced TIFFs
    ``geo/*.tif``; with ``keep=scores`` also log-probabilities at the working resolution. No network runs where an
    earlier artifact holds the maps of the same model under other names, or before a merge.
    """
    from unsupseg_cli.contents.model import read_model
    from unsupseg_cli.contents.predictions import PredictionWriter
    from unsupseg_cli.contents.skipped import Skipped
    from unsupseg_cli.models.device import resolve_device

    config, file = call.config, read_model(call.input("model"))[0]
    draft.deterministic = resolve_device(config.device).type == "cpu"
    skipped = Skipped(call.context, config.strict)
    shown, shard = _shown_class(call), parse_shard(config.shard)
    writer = PredictionWriter(draft, file, _dataset(call), shown, config.overlay, skipped, shard)
    return _Prediction(call, draft, writer)


class _Prediction:
    """The maps of all images, of which this process writes some."""

    def __init__(self, call: Call, draft: Draft, writer: PredictionWriter) -> None:
        self._call, self._draft, self._writer = call, draft, writer
        self.missing = writer.missing

    def write(self) -> None:
        """Write the maps of the shard's images that have none yet."""
        if not _take_stored(self._call, self._writer):
            _segment(self._call, self._writer)
        self._writer.leave_out()

    def close(self) -> dict[str, Any]:
        """Say which images are strips, and return the summary."""
        from unsupseg_cli.inference.extraction import remark_on_strips

        if strips := self._writer.strips():
            self._draft.warnings.append(remark_on_strips(strips))
        return self._writer.close()


def _take_stored(call: Call, writer: PredictionWriter) -> bool:
    """Write the maps of earlier predictions under the model's classes, where only these differ; tell whether it did."""
    from unsupseg_cli.contents.applied_classes import find_same_maps

    if call.context.force or call.config.keep == "scores":
        return False
    earlier = find_same_maps(identify(call), call.input("model"), call.context)
    if earlier is None:
        return False
    stored, read = earlier
    call.context.reporter.info(
        f"no network runs: the label maps of '{stored.id}' are taken under the classes of this model"
    )
    for item in call.context.reporter.track(writer.todo(), "predict"):
        if item.key in stored.manifest.summary["skipped"]:
            writer.skipped.add(item, stored.manifest.summary["skipped"][item.key])
        else:
            call.context.sources.require_unchanged([item.image])
            writer.write(item, read(item.key), None)
    return True


def _segment(call: Call, writer: PredictionWriter) -> None:
    """Write the maps of every image of the shard that has none yet."""
    for image, labels in _labelled(call, writer):
        call.context.sources.require_unchanged([image.item.image])
        kept = call.config.keep == "scores"
        scores = image.log_probs(image.view.height, image.view.width) if kept else None
        strip = _geometry(call).is_strip(image.height, image.width)
        writer.write(image.item, labels, scores, strip=strip)


def _labelled(call: Call, writer: PredictionWriter) -> Iterator[tuple[Segmented, NDArray[np.int16]]]:
    """Yield the images that are left to do with the class of every pixel (H, W), refined where it is asked for."""
    from unsupseg_cli.data.loader import resolve_workers
    from unsupseg_cli.inference.refinement import chunks, refine_segmented
    from unsupseg_cli.models.device import resolve_device

    config = call.config
    segmented = (_of_tokens if "features" in call.inputs else _of_images)(call, writer)
    if not config.crf:
        for image in segmented:
            yield image, image.labels(image.height, image.width)
        return
    crf, workers = CRFConfig().resolved(), resolve_workers(config.workers)
    for part in chunks(segmented, workers):
        refined = refine_segmented(part, crf, workers, resolve_device(config.device))
        yield from zip(part, refined, strict=True)


def _of_images(call: Call, writer: PredictionWriter) -> Iterator[Segmented]:
    """Yield the images that are left to do as the model segments them."""
    from unsupseg_cli.data.loader import resolve_workers
    from unsupseg_cli.inference.segment import segment_items

    config = call.config
    return segment_items(
        opened_model(call).segmenter,
        writer.todo(),
        _geometry(call),
        call.context.reporter,
        flip=config.flip,
        workers=resolve_workers(config.workers),
        batch=config.batch_size,
        tile=config.tile,
        overlap=config.overlap,
        skipped=writer.skipped,
        description="predict",
    )


def _of_tokens(call: Call, writer: PredictionWriter) -> Iterator[Segmented]:
    """Yield the images that are left to do as the model segments their stored tokens."""
    from unsupseg_cli.contents.features import FeatureSet
    from unsupseg_cli.inference.stored import segment_stored

    return segment_stored(
        opened_model(call).segmenter,
        FeatureSet(call.input("features")),
        writer.todo(),
        _geometry(call),
        call.context.reporter,
        flip=call.config.flip,
        skipped=writer.skipped,
        description="predict",
    )


def foresee(call: Call) -> Foreseen:
    """Return about the bytes of maps and pictures, and of the log-probabilities where they are kept, by some images."""
    from unsupseg_cli.contents.model import class_count, view_multiple
    from unsupseg_cli.contents.skipped import Skipped
    from unsupseg_cli.core.progress import Silent
    from unsupseg_cli.data.items import spread
    from unsupseg_cli.inference.extraction import lay_out_views

    config, model, dataset = call.config, call.input("model"), _dataset(call)
    some = replace(dataset, items=tuple(spread(dataset.items, _LOOKED_AT)))
    geometry, silent = _geometry(call), replace(call.context, reporter=Silent())
    try:
        views = lay_out_views(
            some, geometry, view_multiple(model, call.context), Skipped(silent, False)
        ).views
    except UnsupsegError:  # none of them can be read
        return Foreseen()
    share = len(dataset.items) / max(1, len(some.items))
    scores = int((views.height * views.width).sum()) * class_count(model) * 2  # float16
    shown = (views.box[:, 2] - views.box[:, 0]) * (views.box[:, 3] - views.box[:, 1])
    pictures = float(shown.sum()) * (_MAPS + _OVERLAYS * config.overlay)
    return Foreseen(bytes=int(share * (pictures + scores * (config.keep == "scores"))))


_LOOKED_AT = 64  # images
# Bytes of a pixel of PNGs of ids and of colours, and of a JPEG of the image: photos of docs/first-tries.md.
_MAPS, _OVERLAYS = 0.08, 0.39


def finish(call: Call, predictions: Artifact) -> None:
    """Copy the readable files into the folder of the user, where one is named."""
    from unsupseg_cli.contents.predictions import bring_pictures

    if call.config.out is not None:
        bring_pictures(predictions, call.config.out, call.context.reporter)


@once
def _dataset(call: Call) -> Dataset:
    """Return the images of a call: those named, else those of the model's own data set."""
    from unsupseg_cli.contents.images import (
        open_data,
        open_paths,
        require_videos,
        settle_pixels,
        windows_side,
    )
    from unsupseg_cli.contents.predictions import require_no_others
    from unsupseg_cli.data.datasets import dataset_names
    from unsupseg_cli.data.rasters import Windows

    config, model = call.config, call.input("model")
    side = None if config.pages else config.windows or windows_side(model)
    windows = Windows(side, config.overlap) if side else None
    if config.out is not None:
        require_no_others(config.out)
    if config.images:
        require_videos(config.images, config.step)
        dataset = open_paths(
            config.images, call.context, config.out, config.strict, config.pages, windows, config.step
        )
    else:
        stored = call.inputs.get("features")
        data, out = (stored or model).manifest.data, [config.out] if config.out else ()
        split = "val" if data and data.split == "train" else None
        if stored is not None and data is not None:
            split = data.split
        if config.dataset in dataset_names():
            windows = None
        dataset = open_data(config, call.context, split, data, out, windows)
    return settle_pixels(dataset, call.context, model)


def _geometry(call: Call) -> Geometry:
    from unsupseg_cli.contents.model import model_geometry
    from unsupseg_cli.inference.segment import whole_images

    return whole_images(model_geometry(call.input("model"), call.context), call.config.size)


@once
def _shown_class(call: Call) -> int | None:
    """Return the index of the class that the pictures show alone."""
    from unsupseg_cli.contents.model import class_index, read_model

    if call.config.only is None:
        return None
    file, _ = read_model(call.input("model"))
    return class_index(call.config.only, file.classes, file.outputs_of_classes)


STAGE = Stage(
    name="predict",
    config=PredictConfig,
    makes="predictions",
    version=2,
    identify=identify,
    parts=parts,
    ports=(MODEL, STORED),
    foresee=foresee,
    room="--keep labels or --no-overlay",
    finish=finish,
)
