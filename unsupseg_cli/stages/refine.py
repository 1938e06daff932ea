"""refine: Predictions or pseudo-labels -> the same, refined by a dense CRF."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.options import DividedConfig
from unsupseg_cli.core.ports import Port
from unsupseg_cli.core.shards import parse_shard
from unsupseg_cli.crf.config import CRFConfig
from unsupseg_cli.pipeline.stage import Call, Foreseen, Stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unsupseg_cli.artifacts.draft import Draft, SharedWork
    from unsupseg_cli.artifacts.manifest import Manifest
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.contents.predictions import PictureWriter
    from unsupseg_cli.methods.interface import Masks


class RefineConfig(CRFConfig, DividedConfig):
    """Refine predictions, or soft pseudo-labels, with a dense CRF."""

    predictions: str | None = execution(None, "Predictions with --keep scores; default: the last ones.")
    pseudolabels: str | None = execution(None, "Refine these pseudo-labels (--keep scores) instead.")
    label_confidence: float | None = setting(
        None, "Take hard labels, each with this probability.", gt=0, lt=1
    )
    workers: int | None = execution(None, "Images at a time; default: the cores, at most 16.", ge=0)
    device: str = execution("cpu", "cpu, or a GPU for the engines torch and exact (not measured there yet).")
    sheet: int = execution(12, "Views on the picture sheet of pseudo-labels.", ge=0)

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of pseudo-labels where predictions are refined."""
        unread = {} if self.pseudolabels is not None else {"sheet": "predictions have no sheet"}
        return unread | self.unread_of_executor()

    def crf(self) -> CRFConfig:
        """Return the CRF's own options, with the engine settled."""
        fields = {name: getattr(self, name) for name in CRFConfig.model_fields}
        return CRFConfig(**fields).resolved()


def identify(call: Call) -> Identity:
    """Return what decides the refined artifact, of predictions or of pseudo-labels."""
    config, refined = call.config, _refined(call)
    manifest, soft = refined.manifest, _is_soft(refined)
    if soft and config.label_confidence is not None:
        raise UsageError(
            f"'{refined.id}' keeps soft scores, so that --label-confidence has no effect; leave it out."
        )
    if config.label_confidence is not None:
        _require_trust(config.label_confidence, manifest)
    if not soft and config.label_confidence is None:
        raise UsageError(_HARD[manifest.kind].format(id=refined.id))
    decided: dict[str, Any] = {**config.crf().result(), "label_confidence": config.label_confidence}
    inputs, version = call.described(), STAGE.version
    if manifest.kind == "pseudolabels":
        decided = {
            **manifest.config,
            "crf": config.crf().result(),
            "label_confidence": config.label_confidence,
        }
        inputs.append(_features(call).as_input("features"))
        execution, version = {}, _VERSION_OF_MASKS
    else:
        from unsupseg_cli.contents.predictions import named_images

        execution = {"device": config.device, **named_images(manifest)}
    return Identity(
        kind=manifest.kind,
        stage="refine",
        stage_version=version,
        slug=f"{refined.id.rsplit('-', 1)[0]}-crf",
        config=decided,
        inputs=inputs,
        data=manifest.data,
        execution=execution,
        used_labels=call.used_labels,
    )


def _require_trust(confidence: float, manifest: Manifest) -> None:
    """Raise UsageError for a probability of labels at which other classes are at least as probable."""
    classes = int(manifest.summary["classes"]) if manifest.kind == "predictions" else 2  # a mask, and none
    if classes == 1:
        raise UsageError(
            "There is nothing to refine: with one class each pixel has it, and --label-confidence changes nothing."
        )
    if confidence * classes <= 1:
        raise UsageError(
            f"--label-confidence {confidence:g} says of {classes} classes that a label is no more probable than "
            f"another: give more than {1 / classes:.2g}, such as 0.9."
        )


def parts(call: Call, draft: Draft) -> SharedWork:
    """Open the work of refining label maps, or the masks of every view, with the pixels they belong to."""
    if _refined(call).manifest.kind == "predictions":
        return _RefinedPredictions(call, draft)
    return _RefinedMasks(call, draft)


def foresee(call: Call) -> Foreseen:
    """Return about the bytes of the label maps of refined pseudo-labels, which have the views' size."""
    if _refined(call).manifest.kind == "predictions":
        return Foreseen()
    from unsupseg_cli.contents.features import foreseen_grids
    from unsupseg_cli.contents.mask_writer import label_bytes

    features = _features(call)
    return Foreseen(
        bytes=label_bytes(foreseen_grids(features) * int(features.manifest.summary["patch_size"]))
    )


class _RefinedPredictions:
    """The refined maps of all images, of which this process makes some; a finished image survives a kill."""

    def __init__(self, call: Call, draft: Draft) -> None:
        from unsupseg_cli.contents.label_maps import LabelMaps, read_entries
        from unsupseg_cli.contents.predictions import predicted_images

        self._call, self._draft, self._predictions = call, draft, _refined(call)
        summary = self._predictions.manifest.summary
        self._images = predicted_images(self._predictions, call.context)
        self._maps = LabelMaps(draft.folder, read_entries(self._predictions.path))
        self._keys = [key for key in summary["keys"] if key not in summary["skipped"]]

    def write(self) -> None:
        """Refine the images of the shard that are not refined yet."""
        from unsupseg_cli.contents.predictions import ScoreReader, image_part, picture_writer
        from unsupseg_cli.data.images import read_image
        from unsupseg_cli.data.loader import resolve_workers
        from unsupseg_cli.inference.refinement import chunks, refine_labels
        from unsupseg_cli.models.device import resolve_device

        config, reporter, images = self._call.config, self._call.context.reporter, self._images
        workers, device, crf = resolve_workers(config.workers), resolve_device(config.device), config.crf()
        scores = ScoreReader(self._predictions, config.label_confidence)
        own = parse_shard(config.shard).take_images(self._keys)
        todo = [key for key in own if not self._draft.is_done(image_part(key))]
        paint = picture_writer(self._predictions.path, self._draft.folder)
        for part in chunks(reporter.track(todo, "refine", total=len(todo)), workers):
            pixels = [read_image(images[key].image, images[key].reading) for key in part]
            refined = refine_labels([scores(key) for key in part], pixels, crf, workers, device)
            for key, image, labels in zip(part, pixels, refined, strict=True):
                self._write(key, image, labels, paint)

    def _write(
        self, key: str, image: NDArray[np.uint8], labels: NDArray[np.int16], paint: PictureWriter
    ) -> None:
        from unsupseg_cli.contents.predictions import image_part, void_without_data
        from unsupseg_cli.contents.rasters import world_files

        known = void_without_data(self._images[key], labels)
        written = [self._maps.write(key, known), *paint(key, image, known)]
        written += world_files(self._draft.folder, self._images[key])
        self._draft.finish(image_part(key), files=written)

    def missing(self) -> int:
        """Return how many images, of all shards, are not refined."""
        from unsupseg_cli.contents.predictions import image_part

        return sum(not self._draft.is_noted(image_part(key)) for key in self._keys)

    def close(self) -> dict[str, Any]:
        """Write what is of all images, and return the summary."""
        from unsupseg_cli.contents.label_maps import CLASSES, read_ids
        from unsupseg_cli.contents.predictions import bring_rasters
        from unsupseg_cli.contents.rasters import write_rasters, write_whole_overlays

        folder, items, path = self._draft.folder, self._images.values(), self._predictions.path
        summary = self._predictions.manifest.summary
        bring_rasters(self._draft, items)
        self._draft.warnings += write_rasters(folder, items, self._maps.classes, summary["skipped"], read_ids)
        write_whole_overlays(folder, items, summary["skipped"])
        for name in ("legend.png", CLASSES):
            shutil.copy2(path / name, folder / name)
        names = ("images", "classes", "skipped", "keys", "digests")
        return {name: summary[name] for name in names if name in summary}


class _RefinedMasks:
    """The refined masks of all views, of which this process makes some blocks."""

    def __init__(self, call: Call, draft: Draft) -> None:
        from unsupseg_cli.contents.features import FeatureSet
        from unsupseg_cli.contents.mask_writer import MaskWriter
        from unsupseg_cli.contents.masks import STATE, MaskScores
        from unsupseg_cli.contents.views import ViewImages

        config, labels = call.config, _refined(call)
        features = FeatureSet(_features(call))
        self._call, self._draft = call, draft
        self._images = ViewImages(features, call.context, config.workers)
        self._masks = MaskScores(labels, features, config.label_confidence)
        shard = parse_shard(config.shard)
        self._writer = MaskWriter(draft, features.views["key"], self._images.sizes, soft=False, shard=shard)
        self.missing = self._writer.missing
        shutil.copy2(labels.path / STATE, draft.folder / STATE)

    def write(self) -> None:
        """Refine the views of the shard's blocks."""
        from unsupseg_cli.data.loader import resolve_workers
        from unsupseg_cli.inference.refinement import refine_labels
        from unsupseg_cli.models.device import resolve_device

        config, masks = self._call.config, self._masks
        workers, device, crf = resolve_workers(config.workers), resolve_device(config.device), config.crf()

        def make(views: list[int]) -> list[Masks]:
            scores = [masks.log_probs(view) for view in views]
            refined = refine_labels(scores, self._images(views), crf, workers, device)
            return [masks.remaining(view, label - 1) for view, label in zip(views, refined, strict=True)]

        self._writer.fill(make, self._call.context, "refine")

    def close(self) -> dict[str, Any]:
        """Join the blocks, draw the sheet, and return the summary."""
        from unsupseg_cli.contents.mask_writer import draw_masks, warn_of_single_masks

        summary = self._writer.close()
        warn_of_single_masks(self._draft, summary)
        draw_masks(self._draft.folder, lambda: self._images, self._call.config.sheet, self._call.context)
        return summary


def _refined(call: Call) -> Artifact:
    """Return what is refined."""
    (artifact,) = call.inputs.values()
    return artifact


def _features(call: Call) -> Artifact:
    """Return the features of pseudo-labels."""
    from unsupseg_cli.contents.features import features_behind

    return features_behind(_refined(call), call.context)


def _is_soft(artifact: Artifact) -> bool:
    """Tell whether predictions or pseudo-labels keep soft scores; refined ones do not."""
    manifest = artifact.manifest
    maker = {"predictions": "predict", "pseudolabels": "pseudolabel"}[manifest.kind]
    return manifest.stage == maker and manifest.config.get("keep") == "scores"


_VERSION_OF_MASKS = 4  # since their label maps are compressed; predictions stay as they were
_HARD = {
    "predictions": "The predictions '{id}' are hard labels; a CRF needs soft scores. Predict again with --keep scores, "
    "or say how far to trust the labels with --label-confidence 0.9.",
    "pseudolabels": "The pseudo-labels '{id}' are hard masks; a CRF needs soft ones. Make them again with --keep "
    "scores, or say how far to trust them with --label-confidence 0.9.",
}

STAGE = Stage(
    name="refine",
    config=RefineConfig,
    makes="",
    version=3,
    identify=identify,
    parts=parts,
    ports=(
        Port("predictions", "predictions", choice="refined"),
        Port("pseudolabels", "pseudolabels", choice="refined"),
    ),
    foresee=foresee,
    room="",
)
