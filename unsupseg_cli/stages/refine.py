"""refine: Predictions or pseudo-labels -> the same, refined by a dense CRF."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.ports import Port
from unsupseg_cli.crf.config import CRFConfig
from unsupseg_cli.pipeline.stage import Call, Foreseen, Stage

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.methods.interface import Masks


class RefineConfig(CRFConfig):
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
        return {} if self.pseudolabels is not None else {"sheet": "predictions have no sheet"}

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


def work(call: Call, draft: Draft) -> dict[str, Any]:
    """Refine label maps, or the masks of every view, with the pixels they belong to."""
    if _refined(call).manifest.kind == "predictions":
        return _refine_predictions(call, draft)
    return _refine_masks(call, draft)


def foresee(call: Call) -> Foreseen:
    """Return about the bytes of the label maps of refined pseudo-labels, which have the views' size."""
    if _refined(call).manifest.kind == "predictions":
        return Foreseen()
    from unsupseg_cli.contents.features import foreseen_grids
    from unsupseg_cli.contents.masks import label_bytes

    features = _features(call)
    return Foreseen(
        bytes=label_bytes(foreseen_grids(features) * int(features.manifest.summary["patch_size"]))
    )


def _refine_predictions(call: Call, draft: Draft) -> dict[str, Any]:
    from unsupseg_cli.contents.predictions import (
        CLASSES,
        ScoreReader,
        image_part,
        picture_writer,
        predicted_images,
        read_entries,
        read_ids,
        void_without_data,
        write_ids,
    )
    from unsupseg_cli.contents.rasters import world_files, write_rasters, write_whole_overlays
    from unsupseg_cli.data.images import read_image
    from unsupseg_cli.data.loader import resolve_workers
    from unsupseg_cli.inference.refinement import chunks, refine_labels
    from unsupseg_cli.models.device import resolve_device

    config, predictions = call.config, _refined(call)
    summary, files = predictions.manifest.summary, predicted_images(predictions, call.context)
    workers, device, crf = resolve_workers(config.workers), resolve_device(config.device), config.crf()
    scores = ScoreReader(predictions, config.label_confidence)
    keys = [key for key in summary["keys"] if key not in summary["skipped"]]
    todo = [key for key in keys if not draft.is_done(image_part(key))]
    tracked = call.context.reporter.track(todo, "refine", total=len(todo))
    write = picture_writer(predictions.path, draft.folder)
    for part in chunks(tracked, workers):
        images = [read_image(files[key].image, files[key].reading) for key in part]
        refined = refine_labels([scores(key) for key in part], images, crf, workers, device)
        for key, image, labels in zip(part, images, refined, strict=True):
            known = void_without_data(files[key], labels)
            written = [write_ids(draft.folder, key, known), *write(key, image, known)]
            written += world_files(draft.folder, files[key])
            draft.finish(image_part(key), files=written)
    entries = read_entries(predictions.path)
    draft.warnings += write_rasters(draft.folder, files.values(), entries, summary["skipped"], read_ids)
    write_whole_overlays(draft.folder, files.values(), summary["skipped"])
    for name in ("legend.png", CLASSES):
        shutil.copy2(predictions.path / name, draft.folder / name)
    return {
        name: summary[name] for name in ("images", "classes", "skipped", "keys", "digests") if name in summary
    }


def _refine_masks(call: Call, draft: Draft) -> dict[str, Any]:
    from unsupseg_cli.contents.features import FeatureSet
    from unsupseg_cli.contents.masks import STATE, MaskScores, MaskWriter, draw_masks, warn_of_single_masks
    from unsupseg_cli.contents.views import ViewImages
    from unsupseg_cli.data.loader import resolve_workers
    from unsupseg_cli.inference.refinement import refine_labels
    from unsupseg_cli.models.device import resolve_device

    config, labels = call.config, _refined(call)
    features = FeatureSet(_features(call))
    images = ViewImages(features, call.context, config.workers)
    masks = MaskScores(labels, features, config.label_confidence)
    workers, device, crf = resolve_workers(config.workers), resolve_device(config.device), config.crf()
    writer = MaskWriter(draft, features.views["key"], images.sizes, soft=False)
    shutil.copy2(labels.path / STATE, draft.folder / STATE)

    def make(views: list[int]) -> list[Masks]:
        scores = [masks.log_probs(view) for view in views]
        refined = refine_labels(scores, images(views), crf, workers, device)
        return [masks.remaining(view, label - 1) for view, label in zip(views, refined, strict=True)]

    writer.fill(make, call.context, "refine")
    summary = writer.close()
    warn_of_single_masks(draft, summary)
    draw_masks(draft.folder, lambda: images, config.sheet, call.context)
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
    work=work,
    ports=(
        Port("predictions", "predictions", choice="refined"),
        Port("pseudolabels", "pseudolabels", choice="refined"),
    ),
    foresee=foresee,
)
