"""classes: A model -> the same with other names or colours of its classes, or with several as one; or predictions."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from unsupseg_cli.artifacts.identity import UNKNOWN, Identity
from unsupseg_cli.core.config import Config, execution
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import as_ranges
from unsupseg_cli.core.ports import MODEL, Port
from unsupseg_cli.pipeline.stage import Call, Stage, once

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.contents.model import ModelFile


class ClassesConfig(Config):
    """Change the classes of a model; a class is given by its name or id. Or apply them to stored predictions.

    The result decides the key, not the way there: no field enters it by itself.
    """

    model: str | None = execution(None, "Model artifact, or a file of `export`; default: the last one.")
    names: dict[str, str] = execution({}, "New names by class.")
    colors: dict[str, str] = execution({}, "New colours by class: #a0522d, 160,82,45 or sienna.")
    merge: tuple[tuple[str, ...], ...] = execution(
        (), "Groups of classes, each of which becomes its first one."
    )
    predictions: str | None = execution(
        None, "Bring these predictions under the classes of the model, without a network, instead."
    )
    out: Path | None = execution(None, "Also copy the label maps and pictures of these predictions here.")

    @model_validator(mode="after")
    def _change_or_apply(self) -> ClassesConfig:
        if self.predictions is not None and (self.names or self.colors or self.merge):
            raise ValueError(
                "name, color or merge the classes of the model first, then apply them to predictions"
            )
        if self.predictions is None and self.out is not None:
            raise ValueError("--out is of applied classes; a model stays in the workspace (see `export`)")
        return self


def _reads(values: Mapping[str, Any]) -> tuple[Port, ...]:
    return (MODEL, _PREDICTIONS) if values.get("predictions") is not None else (MODEL,)


def identify(call: Call) -> Identity:
    """Return what decides the model: weights and inputs of the old one, and what its classes are now."""
    if "predictions" in call.inputs:
        return _identify_applied(call)
    artifact = call.input("model")
    manifest = artifact.manifest
    if "model.safetensors" not in manifest.outputs:  # a dry run promises it
        changes = call.config.model_dump(mode="json", exclude={"model"})
        return Identity(
            kind="model",
            stage="classes",
            stage_version=STAGE.version,
            slug=artifact.id.rsplit("-", 1)[0],
            config={**manifest.config, "changes": changes},
            inputs=manifest.inputs,
            data=manifest.data,
            weights=UNKNOWN,
            used_labels=manifest.used_labels,
        )
    file = _edited(call)
    classes = {
        "classes": len(file.classes),
        "entries": file.model_dump(mode="json")["classes"],
        "class_of": file.class_of,
    }
    return Identity(
        kind="model",
        stage="classes",
        stage_version=STAGE.version,
        slug=_slug(artifact, len(file.classes)),
        config={**manifest.config, **classes},
        inputs=manifest.inputs,
        data=manifest.data,
        weights=manifest.outputs["model.safetensors"].sha256,
        execution={**manifest.execution, "edited": artifact.id},
        used_labels=manifest.used_labels,
    )


def _identify_applied(call: Call) -> Identity:
    """Return what decides predictions under other classes: those they were, and the model."""
    from unsupseg_cli.contents.model import class_count
    from unsupseg_cli.contents.predictions import named_images, predicted_dataset
    from unsupseg_cli.contents.rasters import raster_config

    model, predictions = call.input("model"), call.input("predictions")
    return Identity(
        kind="predictions",
        stage="classes",
        stage_version=STAGE.version,
        slug=_slug(predictions, class_count(model)),
        config=raster_config(predicted_dataset(predictions, call.context).items)
        if predictions.is_made
        else {},
        inputs=call.described(),
        data=predictions.manifest.data,
        execution=dict(named_images(predictions.manifest)),
        used_labels=call.used_labels,
    )


def _slug(artifact: Artifact, classes: int) -> str:
    return f"{re.sub('-classes[0-9]+$', '', artifact.id.rsplit('-', 1)[0])}-classes{classes}"


def work(call: Call, draft: Draft) -> dict[str, Any]:
    """Write the same weights with the new classes, and the backbone that an exported model brings along."""
    if "predictions" in call.inputs:
        return _apply(call, draft)
    from unsupseg_cli.contents.model import BACKBONE, own_weights, read_model, write_model

    artifact, file = call.input("model"), _edited(call)
    draft.deterministic = artifact.manifest.deterministic
    write_model(draft.folder, file, read_model(artifact)[1])
    if own_weights(artifact):
        _copy_tree(artifact.path / BACKBONE, draft.folder / BACKBONE)
    return {"method": file.method, "classes": len(file.classes)}


def _apply(call: Call, draft: Draft) -> dict[str, Any]:
    """Write the label maps of predictions, and their pictures, under the classes of the model."""
    from unsupseg_cli.contents.applied_classes import reader_of
    from unsupseg_cli.contents.model import read_model
    from unsupseg_cli.contents.predictions import PredictionWriter, predicted_dataset
    from unsupseg_cli.contents.skipped import Skipped

    model, predictions, context = call.input("model"), call.input("predictions"), call.context
    read = reader_of(predictions, model, context)
    overlay = (predictions.path / "overlay").exists()
    skipped = Skipped(context)
    skipped.update(predictions.manifest.summary["skipped"])
    draft.deterministic = predictions.manifest.deterministic
    dataset = predicted_dataset(predictions, context)
    writer = PredictionWriter(draft, read_model(model)[0], dataset, None, overlay, skipped)
    todo = [item for item in writer.todo() if item.key not in skipped]
    for item in context.reporter.track(todo, "classes apply", total=len(todo)):
        writer.write(item, read(item.key), None)
    return writer.close()


def finish(call: Call, made: Artifact) -> None:
    """Copy applied predictions where they are asked for; of a merge, say which ids are gone."""
    if call.config.out is not None:
        _bring_results(call, made, call.config.out)
    if call.config.merge:
        _warn_of_merged(call, made)


def _bring_results(call: Call, predictions: Artifact, out: Path) -> None:
    """Copy the label maps and pictures; in a folder that `segment` made, the sheets and the report are made anew."""
    from unsupseg_cli.contents.predictions import bring_pictures
    from unsupseg_cli.contents.result_folder import CLASS_SHEET, REPORT, require_same_images, write_results
    from unsupseg_cli.pipeline.report import write_report

    model, context = call.input("model"), call.context
    if not (out / CLASS_SHEET).exists():
        bring_pictures(predictions, out, context.reporter)
        return
    require_same_images(predictions, out)
    write_results(predictions, model, out, context)
    write_report([predictions], out / REPORT, context, {model.id: out / CLASS_SHEET})
    context.reporter.info(f"all of '{out}' tells these classes now, '{CLASS_SHEET}' and '{REPORT}' too")


def _warn_of_merged(call: Call, model: Artifact) -> None:
    """Say what the classes that a merge took away are part of, and which label maps of before still hold them."""
    from unsupseg_cli.contents.label_maps import read_entries
    from unsupseg_cli.contents.model import read_model
    from unsupseg_cli.contents.predictions import weights_behind

    old, new = (read_model(artifact)[0].entries_of_outputs for artifact in (call.input("model"), model))
    taken: dict[tuple[int, str], set[int]] = {}
    for was, now in zip(old, new, strict=True):
        if was.id != now.id:
            taken.setdefault((now.id, now.name), set()).add(was.id)
    parts = ", ".join(
        f"{as_ranges(sorted(ids))} into {into} ('{name}')" for (into, name), ids in taken.items()
    )
    gone, weights = set[int]().union(*taken.values()), weights_behind(model, call.context)
    older = [
        predictions.id
        for predictions in call.context.workspace.artifacts("predictions")
        if weights_behind(predictions, call.context) == weights
        and gone & {entry.id for entry in read_entries(predictions.path)}
    ]
    which = f" ({', '.join(older)})" if older else ""
    call.context.reporter.warn(
        f"merged in '{model.id}': {parts}; label maps made before{which} still tell them apart: `unsupseg classes "
        f"apply PREDICTIONS --model {model.id}` makes them anew without a network"
    )


@once
def _edited(call: Call) -> ModelFile:
    """Return the model file after all changes: groups are merged first."""
    from unsupseg_cli.contents.model import read_model
    from unsupseg_cli.contents.model_classes import merge, recolor, rename

    config, (file, _) = call.config, read_model(call.input("model"))
    if not (config.merge or config.names or config.colors):
        raise UsageError(
            "No class was given: expected CLASS=VALUE, such as 3=road, or groups of at least two classes, such as 3,5."
        )
    if config.merge:
        file = merge(file, config.merge)
    if config.names:
        file = rename(file, config.names)
    if config.colors:
        file = recolor(file, config.colors)
    return file


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links where the disk has them: what an artifact holds is never written again."""
    shutil.rmtree(target, ignore_errors=True)
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except OSError:
        shutil.copytree(source, target, dirs_exist_ok=True)


_PREDICTIONS = Port("predictions", "predictions", optional=True)

STAGE = Stage(
    name="classes",
    config=ClassesConfig,
    makes="model",
    version=1,
    identify=identify,
    work=work,
    also={"predictions": "predictions"},
    ports=(MODEL, _PREDICTIONS),
    reads=_reads,
    finish=finish,
)
