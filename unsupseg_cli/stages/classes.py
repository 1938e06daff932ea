"""classes: A model -> the same with other names or colours of its classes, or with several as one."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unsupseg_cli.artifacts.identity import UNKNOWN, Identity
from unsupseg_cli.core.config import Config, execution
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.ports import MODEL
from unsupseg_cli.pipeline.stage import Call, Stage, once

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.contents.model import ModelFile


class ClassesConfig(Config):
    """Change the classes of a model; a class is given by its name or number.

    The result decides the key, not the way there: no field enters it by itself.
    """

    model: str | None = execution(None, "Model artifact, or a file of `export`; default: the last one.")
    names: dict[str, str] = execution({}, "New names by class.")
    colors: dict[str, str] = execution({}, "New colours by class: #a0522d, 160,82,45 or sienna.")
    merge: tuple[tuple[str, ...], ...] = execution(
        (), "Groups of classes, each of which becomes its first one."
    )


def identify(call: Call) -> Identity:
    """Return what decides the model: weights and inputs of the old one, and what its classes are now."""
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
        "entries": [entry.model_dump(mode="json") for entry in file.classes],
        "class_of": file.class_of,
    }
    return Identity(
        kind="model",
        stage="classes",
        stage_version=STAGE.version,
        slug=f"{re.sub('-classes[0-9]+$', '', artifact.id.rsplit('-', 1)[0])}-classes{len(file.classes)}",
        config={**manifest.config, **classes},
        inputs=manifest.inputs,
        data=manifest.data,
        weights=manifest.outputs["model.safetensors"].sha256,
        execution={**manifest.execution, "edited": artifact.id},
        used_labels=manifest.used_labels,
    )


def work(call: Call, draft: Draft) -> dict[str, Any]:
    """Write the same weights with the new classes, and the backbone that an exported model brings along."""
    from unsupseg_cli.contents.model import BACKBONE, own_weights, read_model, write_model

    artifact, file = call.input("model"), _edited(call)
    draft.deterministic = artifact.manifest.deterministic
    write_model(draft.folder, file, read_model(artifact)[1])
    if own_weights(artifact):
        _copy_tree(artifact.path / BACKBONE, draft.folder / BACKBONE)
    return {"method": file.method, "classes": len(file.classes)}


def finish(call: Call, model: Artifact) -> None:
    """Say which classes have another number since a merge: label maps of before keep theirs."""
    from unsupseg_cli.contents.model import read_model

    if not call.config.merge:
        return
    old, new = read_model(call.input("model"))[0], read_model(model)[0]
    before, after = (file.class_of or list(range(file.outputs)) for file in (old, new))
    moved = sorted({(one, other) for one, other in zip(before, after, strict=True) if one != other})
    if moved:
        numbers = ", ".join(f"{one} is now {other}" for one, other in moved)
        call.context.reporter.warn(
            f"classes have other numbers in '{model.id}' ({numbers}): label maps made before keep the old ones, so "
            "predict again before you compare them"
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


STAGE = Stage(
    name="classes",
    config=ClassesConfig,
    makes="model",
    version=1,
    identify=identify,
    work=work,
    ports=(MODEL,),
    finish=finish,
)
