"""eval: A model or predictions, and labels -> scores.

Labels are read here and in `eval-masks` only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import OBJECTS
from unsupseg_cli.core.options import BatchConfig, DataConfig, DividedConfig, Precision
from unsupseg_cli.core.ports import STORED, Port
from unsupseg_cli.core.shards import parse_shard
from unsupseg_cli.core.words import counted
from unsupseg_cli.crf.config import CRFConfig
from unsupseg_cli.pipeline.model_input import opened_model
from unsupseg_cli.pipeline.stage import Call, Stage, once

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.contents.model import OpenModel
    from unsupseg_cli.contents.skipped import Skipped
    from unsupseg_cli.data.datasets import Dataset
    from unsupseg_cli.data.geometry import Geometry
    from unsupseg_cli.data.items import Item
    from unsupseg_cli.data.labels import LabelSpace
    from unsupseg_cli.inference.evaluation import Pair
    from unsupseg_cli.inference.segment import Segmented
    from unsupseg_cli.metrics.protocols import Protocol

Matching = Literal["hungarian", "iou", "majority", "stego-extra", "primaps-extra", "per-image"]


class EvalConfig(DataConfig, BatchConfig, DividedConfig):
    """Score a model or predictions against labels."""

    model: str | None = execution(None, "Model artifact, or a file of `export`; default: the last one.")
    predictions: str | None = execution(None, "Score these predictions instead of a model.")
    features: str | None = execution(
        None,
        "Features of the split that is scored: their tokens are read and no backbone runs, so that further models, "
        "seeds and CRF settings cost little. Scores agree to the rounding of stored tokens.",
    )
    weights: Path | None = execution(None, "Weights file of the model's backbone, where it is not found.")
    split: str | None = execution(
        None, "Part of the data set; default: val, of predictions and --features theirs."
    )
    protocol: str = setting("auto", "Named rules of geometry, filter and matching (`unsupseg protocols`).")
    matching: Matching | None = setting(
        None,
        "How clusters get classes; default: the protocol's. Of more clusters than classes those left over are errors; "
        "stego-extra leaves out the pixels of the last ones, primaps-extra merges those without a class into others.",
    )
    assignment: str | None = execution(None, "Take the matching from this evaluation instead.")
    naming: str | None = execution(
        None,
        "Name clusters as this evaluation of masks did (`eval-masks`): by labels of objects, of the training images "
        "say. It counts as use of labels.",
    )
    flip: bool | None = setting(None, "Average with the mirror image; default: the protocol's.")
    crf: bool = setting(False, "Refine with the dense CRF at the scale of the labels.")
    linear_probe: bool = setting(False, "Also fit a supervised linear probe on the training split's labels.")
    probe_steps: int = setting(500, "Steps of the linear probe.", ge=1)
    precision: Precision = setting("auto", "Arithmetic of the backbone, or of a network without one.")
    seed: int = setting(0, "Seed of the linear probe.", ge=0)
    sheet: int = execution(8, "Images on the picture sheet.", ge=0)

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of a probe that is not fitted, and of a model where predictions are scored."""
        unread = self.unread_of_executor()
        if not self.linear_probe:
            unread |= dict.fromkeys(("probe_steps", "seed"), "they are read with --linear-probe only")
        for source in ("assignment", "naming"):
            if getattr(self, source) is not None and self.matching != "per-image":
                unread["matching"] = f"the matching is taken from --{source}"
        if self.naming is not None:
            unread["assignment"] = "clusters are named by --naming"
        if self.predictions is not None:
            reason = "label maps are scored, no model runs"
            unread |= dict.fromkeys(("features", "weights", "flip", "precision", "batch_size"), reason)
            unread["crf"] = (
                "--crf needs a model: refine predictions with `unsupseg refine` and score the result"
            )
            unread["linear_probe"] = "--linear-probe needs a model: name one with --model"
        elif self.features is not None:
            unread |= dict.fromkeys(
                ("weights", "precision", "batch_size"), "tokens are read, no backbone runs"
            )
        return unread


_PROBE_FILES = ("labels", "class_file", "label_suffix")


def identify(call: Call) -> Identity:
    """Return what decides the scores of a model or of predictions."""
    from unsupseg_cli.contents.digests import label_fingerprint, space_digest
    from unsupseg_cli.contents.images import describe_images
    from unsupseg_cli.contents.predictions import require_predicted
    from unsupseg_cli.contents.stored_tokens import require_tokens
    from unsupseg_cli.models.backbone import resolve_precision
    from unsupseg_cli.models.device import resolve_device

    config, context, scored, dataset = call.config, call.context, _scored(call), _dataset(call)
    of_model = scored.manifest.kind == "model"
    _refuse_model_options(config, of_model)
    if not of_model and scored.is_made:  # a dry run promises it
        require_predicted(scored, dataset.items, context)
    space, protocol = _space(call), _protocol(call)
    data = describe_images(dataset, context)
    if "features" in call.inputs:
        require_tokens(call.input("features"), scored, data, _geometry(call), flip=protocol.flip)
    device, labels = resolve_device(config.device), label_fingerprint(dataset.items, context)
    looks = of_model and "features" not in call.inputs
    return Identity(
        kind="evaluation",
        stage="eval",
        stage_version=STAGE.version,
        slug=f"{dataset.name}-{dataset.split}-{_method_of(scored, call)}-{protocol.name}",
        config={
            **config.result(),
            "protocol": protocol.describe(),
            "flip": protocol.flip,
            "matching": protocol.matching,
            "space": space.name,
            "space_digest": space_digest(space),
            "labels": labels,
            "probe_labels": _probe_labels(call) if config.linear_probe else "",
            "precision": resolve_precision(config.precision, device) if looks else "",
            "crf": CRFConfig().resolved().result() if config.crf else None,
        },
        inputs=call.described(),
        data=data,
        label_fingerprint=labels,
        execution={"device": str(device), "batch_size": config.batch_size} if of_model else {},
        used_labels=call.used_labels or config.linear_probe or "naming" in call.inputs,
    )


def parts(call: Call, draft: Draft) -> _Evaluation:
    """Open the work of bringing predictions and labels together, image by image; counted blocks survive a kill."""
    return _Evaluation(call, draft)


class _Evaluation:
    """The scores of all images, of which this process counts some."""

    def __init__(self, call: Call, draft: Draft) -> None:
        from unsupseg_cli.contents.label_maps import read_entries, read_outputs
        from unsupseg_cli.contents.model import read_model
        from unsupseg_cli.contents.skipped import Skipped
        from unsupseg_cli.inference.evaluation import require_all_predicted
        from unsupseg_cli.inference.tally import Tally, TallyWriter

        self._call, self._draft = call, draft
        self._scored, self._space = _scored(call), _space(call)
        if self._scored.manifest.kind == "model":
            file, _ = read_model(self._scored)
            entries, self._outputs = file.classes, file.outputs_of_classes
        else:
            require_all_predicted(self._scored, _dataset(call))
            entries, self._outputs = read_entries(self._scored.path), read_outputs(self._scored.path)
        self._ids = [entry.id for entry in entries]
        self._skipped = Skipped(call.context, call.config.strict)
        empty, shard = Tally.empty(len(self._ids), len(self._space.names)), parse_shard(call.config.shard)
        self._writer = TallyWriter(draft, _labelled(call), empty, shard, call.context)
        self.missing = self._writer.missing

    def write(self) -> None:
        """Count the images of the shard that are not counted yet."""
        from unsupseg_cli.data.items import spread

        todo = self._writer.todo()
        shown = {item.key for item in spread(_labelled(self._call), self._call.config.sheet)}
        per_image = _protocol(self._call).matching == "per-image"
        if todo:
            self._writer.count(self._pairs(todo), self._skipped, per_image, shown)

    def _pairs(self, items: Sequence[Item]) -> Iterator[Pair]:
        """Yield prediction and truth of some images, but for those that are skipped."""
        from unsupseg_cli.data.loader import resolve_workers
        from unsupseg_cli.inference.evaluation import model_pairs, prediction_pairs
        from unsupseg_cli.models.device import resolve_device

        call, config = self._call, self._call.config
        if self._scored.manifest.kind != "model":
            return prediction_pairs(self._scored, items, self._space, call.context.reporter)
        return model_pairs(
            (_of_tokens if "features" in call.inputs else _of_images)(call, items, self._skipped),
            self._probe() if config.linear_probe else None,
            self._space,
            _geometry(call),
            crf=CRFConfig().resolved() if config.crf else None,
            device=resolve_device(config.device),
            workers=resolve_workers(config.workers),
        )

    def _probe(self) -> OpenModel:
        """Return the model with a linear probe of the training split's labels."""
        from unsupseg_cli.diagnosis.linear_probe import fit_probe

        call, config = self._call, self._call.config
        files = {name: getattr(config, name) for name in _PROBE_FILES}
        training = {"steps": config.probe_steps, "seed": config.seed}
        return fit_probe(opened_model(call), _dataset(call), self._space, call.context, **files, **training)

    def close(self) -> dict[str, Any]:
        """Match and score, and write tables and pictures."""
        from unsupseg_cli.artifacts.files import write_json
        from unsupseg_cli.contents.evaluation import SCORES
        from unsupseg_cli.inference.scoring import score_tally

        call, draft, dataset = self._call, self._draft, _dataset(self._call)
        tally, skipped = self._writer.close()
        assignment = self._assignment()
        clusters = (self._ids, self._outputs)
        summary = score_tally(
            draft.folder, tally, *clusters, self._space, _protocol(call), assignment, draft.warnings
        )
        if skipped:
            examples = ", ".join(list(skipped)[:5])
            draft.warnings.append(f"unreadable images left out: {len(skipped)} ({examples})")
        draft.warnings += _settled(call)[1]
        if dataset.unlabelled:
            draft.warnings.append(f"left out: {counted(len(dataset.unlabelled), 'image')} without a label")
        summary["crf"] = call.config.crf
        if "assignment" in call.inputs and "naming" not in call.inputs:
            summary["matched_by"] = call.inputs["assignment"].id
        summary["skipped"] = skipped
        write_json(draft.folder / SCORES, summary)
        return summary

    def _assignment(self) -> NDArray[np.int64] | None:
        """Return the class of each cluster, where another evaluation says it."""
        from unsupseg_cli.contents.evaluation import read_assignment, read_naming

        inputs, names = self._call.inputs, self._space.names
        if "naming" in inputs:
            assignment = read_naming(inputs["naming"], len(self._ids), names)
            if unnamed := int((assignment < 0).sum()):
                self._draft.warnings.append(
                    f"{unnamed} of {len(self._ids)} clusters have no name: their pixels count as errors"
                )
            return assignment
        if (evaluation := inputs.get("assignment")) is None:
            return None
        if remark := _remark_on_weights(self._call, evaluation):
            self._draft.warnings.append(remark)
        return read_assignment(evaluation, self._ids, self._outputs, len(names))


def _remark_on_weights(call: Call, evaluation: Artifact) -> str:
    """Return a line that another training made the clusters that an evaluation matched; empty where none is known."""
    from unsupseg_cli.contents.predictions import weights_behind

    weights = [weights_behind(artifact, call.context) for artifact in (_scored(call), evaluation)]
    if None in weights or weights[0] == weights[1]:
        return ""
    return (
        f"the matching is that of '{evaluation.id}', of clusters that another training made: cluster 0 there need not "
        "be cluster 0 here"
    )


def _of_images(call: Call, items: Sequence[Item], skipped: Skipped) -> Iterator[Segmented]:
    """Yield images as the model segments them."""
    from unsupseg_cli.data.loader import resolve_workers
    from unsupseg_cli.inference.segment import segment_items

    config = call.config
    return segment_items(
        opened_model(call).segmenter,
        items,
        _geometry(call),
        call.context.reporter,
        flip=_protocol(call).flip,
        workers=resolve_workers(config.workers),
        batch=config.batch_size,
        skipped=skipped,
        description="eval",
    )


def _of_tokens(call: Call, items: Sequence[Item], skipped: Skipped) -> Iterator[Segmented]:
    """Yield images as the model segments their stored tokens."""
    from unsupseg_cli.contents.features import FeatureSet
    from unsupseg_cli.inference.stored import segment_stored

    return segment_stored(
        opened_model(call).segmenter,
        FeatureSet(call.input("features")),
        items,
        _geometry(call),
        call.context.reporter,
        flip=_protocol(call).flip,
        skipped=skipped,
        description="eval",
    )


def _labelled(call: Call) -> list[Item]:
    return [item for item in _dataset(call).items if item.label is not None]


def _scored(call: Call) -> Artifact:
    return call.inputs.get("predictions") or call.input("model")


def _refuse_model_options(config: EvalConfig, of_model: bool) -> None:
    if of_model:
        return
    if config.crf:
        raise UsageError(
            "--crf needs a model; refine predictions with `unsupseg refine` and score the result."
        )
    if config.linear_probe:
        raise UsageError("--linear-probe needs a model, not predictions; name one with --model.")


@once
def _dataset(call: Call) -> Dataset:
    """Return the images of a call: those of what is scored where none are named."""
    from unsupseg_cli.contents.images import open_data, settle_pixels

    config, manifest = call.config, call.inputs.get("features", _scored(call)).manifest
    if config.dataset is None and manifest.data is not None and manifest.kind != "model":
        config = config.model_copy(update={"split": config.split or manifest.data.split})
    dataset = open_data(config, call.context, default_split="val", source=manifest.data)
    if config.dataset is None and config.labels is None and "features" in call.inputs:
        place = dataset.origin or dataset.root
        call.context.reporter.info(f"scoring by the labels of '{place}', which the features name")
    return settle_pixels(dataset, call.context, _scored(call))


def _probe_labels(call: Call) -> str:
    """Return the fingerprint of the labels that the linear probe is fitted on."""
    from unsupseg_cli.artifacts.identity import UNKNOWN
    from unsupseg_cli.contents.digests import label_fingerprint
    from unsupseg_cli.diagnosis.linear_probe import training_data

    config = call.config
    if not _scored(call).is_made:  # a dry run promises it
        return UNKNOWN
    files = {name: getattr(config, name) for name in _PROBE_FILES}
    _, train = training_data(_scored(call), _dataset(call), files, call.context)
    return label_fingerprint(train.items, call.context)


@once
def _settled(call: Call) -> tuple[LabelSpace, list[str]]:
    """Return the classes as the labels are read, and remarks on how."""
    from unsupseg_cli.data.label_survey import settle_labels

    dataset = _dataset(call)
    if dataset.space is None or not any(item.label for item in dataset.items):
        raise UsageError(
            f"'{dataset.root}' has no labels to score against: give --labels with a folder of label images and "
            "--class-file with the class names."
        )
    return settle_labels(dataset.items, dataset.space, call.context.reporter)


def _space(call: Call) -> LabelSpace:
    return _settled(call)[0]


@once
def _protocol(call: Call) -> Protocol:
    from unsupseg_cli.metrics.protocols import get_protocol

    config, of_predictions = call.config, _scored(call).manifest.kind == "predictions"
    name = _dataset(call).protocol if config.protocol == "auto" else config.protocol
    protocol = get_protocol("native" if of_predictions and config.protocol == "auto" else name)
    if of_predictions and protocol.geometry != "native":
        raise UsageError(
            f"Predictions are label maps at original size and can be scored under the protocol 'native' only, not "
            f"'{protocol.name}'; score the model itself with --model."
        )
    flip = protocol.flip if config.flip is None else config.flip
    matching = config.matching or (OBJECTS if "naming" in call.inputs else None)
    return replace(protocol, flip=flip, matching=matching or protocol.matching)


def _geometry(call: Call) -> Geometry:
    """Return how images become views: as the protocol says; `native` works at the model's own size."""
    from unsupseg_cli.contents.model import model_geometry
    from unsupseg_cli.data.geometry import Geometry

    protocol, own = _protocol(call), model_geometry(_scored(call), call.context)
    image_filter = own.filter if protocol.geometry == "native" else protocol.filter
    return Geometry(kind=protocol.geometry, size=protocol.size or own.size, filter=image_filter)


def _method_of(artifact: Artifact, call: Call) -> str:
    """Return method and number of classes of a model, or of the model behind predictions, for the name."""
    used = artifact.input("model")
    model = call.context.workspace.find_key("model", used.key) if used else artifact
    config = model.manifest.config if model else {}
    return f"{config.get('method', 'model')}{config.get('classes', '')}"


STAGE = Stage(
    name="eval",
    config=EvalConfig,
    makes="evaluation",
    version=5,
    identify=identify,
    parts=parts,
    ports=(
        Port("model", "model", choice="scored"),
        Port("predictions", "predictions", choice="scored"),
        STORED,
        Port("assignment", "evaluation", optional=True),
        Port("naming", "mask-evaluation", optional=True),
    ),
)
