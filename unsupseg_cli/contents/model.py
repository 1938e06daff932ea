"""Writing and opening a `model` artifact: ``model.safetensors`` and the chain in ``model.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.files import write_json
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.backbone import TOKEN_FIELDS, load_frozen
from unsupseg_cli.contents.features import features_behind, stored_geometry
from unsupseg_cli.core.errors import UnsupsegError, UsageError, did_you_mean
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.methods.interface import TrainedHead
from unsupseg_cli.methods.registry import import_heads, method_of, not_installed
from unsupseg_cli.models.heads import HEADS, build_head
from unsupseg_cli.models.segmenter import Segmenter
from unsupseg_cli.report.palette import class_colors

_JSON, _TENSORS = "model.json", "model.safetensors"
BACKBONE, TIMM_WEIGHTS = "backbone", "weights.safetensors"


Byte = Annotated[int, Field(ge=0, le=255)]


class BackboneRef(BaseModel):
    """Which frozen backbone a model stands on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weights_digest: str
    layer: int = -1
    norm: bool = True
    pos_embed: Literal["original", "timm"] = "original"
    position: float = 0.0


class ClassEntry(BaseModel):
    """One discovered class: a number until someone names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    color: tuple[Byte, Byte, Byte]


class ModelFile(BaseModel):
    """The content of ``model.json``: the chain from image to classes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = 1
    method: str = Field(pattern="^[A-Za-z0-9_-]+$")
    backbone: BackboneRef
    feature_heads: list[dict[str, Any]]
    class_head: dict[str, Any]
    geometry: dict[str, Any]
    classes: list[ClassEntry]
    class_of: list[int] | None = None
    """The class of each output of the class head, where some were merged."""


@dataclass(frozen=True)
class OpenModel:
    """A model ready to use."""

    artifact: Artifact
    file: ModelFile
    segmenter: Segmenter
    geometry: Geometry


def write_model(folder: Path, file: ModelFile, tensors: dict[str, Tensor]) -> None:
    """Write the two files of a model."""
    unmerged = {"class_of"} if file.class_of is None else set()
    write_json(folder / _JSON, file.model_dump(mode="json", exclude=unmerged))
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, folder / _TENSORS)


def read_model(artifact: Artifact) -> tuple[ModelFile, dict[str, Tensor]]:
    """Read the chain and the tensors of a model artifact.

    Raises:
        UnsupsegError: a file is missing, damaged or of a newer format.
    """
    try:
        raw = json.loads((artifact.path / _JSON).read_text(encoding="utf-8"))
        if int(raw.get("format_version", 0)) > 1:
            raise UnsupsegError(
                f"The model '{artifact.id}' has a newer format than this version reads; update unsupseg."
            )
        return ModelFile.model_validate(raw), load_file(artifact.path / _TENSORS)
    except (OSError, ValueError, ValidationError) as error:
        raise UnsupsegError(
            f"The model '{artifact.id}' is damaged ({error}); run `unsupseg verify {artifact.id}` and train again."
        ) from None


def write_trained(folder: Path, method: str, head: TrainedHead, features: Artifact, context: Context) -> None:
    """Write the model that a training on some features gave: the heads of the features' own model come first."""
    chain, tensors = list(head.feature_heads), dict(head.tensors)
    config = features.manifest.config
    backbone = BackboneRef(
        name=config["backbone"],
        weights_digest=features.manifest.summary["weights_digest"],
        **{name: config[name] for name in TOKEN_FIELDS if name in config},  # older features lack some
    )
    base = features.input("model")
    if base is not None:
        below, below_tensors = read_model(context.workspace.get(base.id, "model"))
        offset = len(below.feature_heads)
        tensors = {_renumber_head(name, offset): value for name, value in tensors.items()}
        tensors |= {name: value for name, value in below_tensors.items() if name.startswith("feature_heads.")}
        chain, backbone = [*below.feature_heads, *chain], below.backbone
    colors = class_colors(int(head.class_head["classes"]))
    file = ModelFile(
        method=method,
        backbone=backbone,
        feature_heads=chain,
        class_head=head.class_head,
        geometry=stored_geometry(config),
        classes=[
            ClassEntry(name=f"class {i}", color=(int(r), int(g), int(b)))
            for i, (r, g, b) in enumerate(colors)
        ],
    )
    try:
        check_model(file, tensors)
    except (ValueError, KeyError, TypeError, RuntimeError, UnsupsegError) as error:
        reason = " ".join(str(error).split())
        raise UnsupsegError(
            f"The trainer of '{method}' gave a model whose parts do not fit ({reason}); nothing was written."
        ) from None
    write_model(folder, file, tensors)


def check_model(file: ModelFile, tensors: dict[str, Tensor]) -> None:
    """Raise an error of some kind unless the parts of a model belong together and hold numbers."""
    Geometry(**file.geometry)
    import_heads(str(head["type"]) for head in file.feature_heads)
    described = {f"feature_heads.{index}.": head for index, head in enumerate(file.feature_heads)}
    for prefix, head in (described | {"class_head.": file.class_head}).items():
        build_head(head).load_state_dict(with_prefix(tensors, prefix))
    outputs = int(file.class_head["classes"])
    class_of = list(range(outputs)) if file.class_of is None else file.class_of
    if len(class_of) != outputs or set(class_of) != set(range(len(file.classes))):
        raise ValueError(f"{outputs} outputs of the class head do not make {len(file.classes)} classes")
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"'{name}' holds NaN or infinite values")


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def class_prototypes(model: Artifact) -> Tensor | None:
    """Return the weight (K, C) of a model's class head, if it has one of this kind.

    Of outputs that were merged into one class the mean direction is taken.
    """
    file, tensors = read_model(model)
    weight = tensors.get("class_head.weight")
    if weight is None or file.class_of is None:
        return weight
    unit, class_of = torch.nn.functional.normalize(weight, dim=-1), torch.tensor(file.class_of)
    return torch.stack([unit[class_of == index].mean(0) for index in range(len(file.classes))])


def _renumber_head(name: str, offset: int) -> str:
    if not name.startswith("feature_heads."):
        return name
    _, index, parameter = name.split(".", 2)
    return f"feature_heads.{int(index) + offset}.{parameter}"


def class_index(reference: str, classes: Sequence[ClassEntry]) -> int:
    """Return the number of the class that a name or a number means.

    Raises:
        UsageError: there is none, or after a merge the number is one class's and in the name of another.
    """
    names = [entry.name for entry in classes]
    if reference in names:
        return names.index(reference)
    if reference.isdecimal() and int(reference) < len(classes):
        index = int(reference)
        if (old := f"class {index}") in names and names[index] != old:
            raise UsageError(
                f"'{reference}' may mean '{names[index]}', which has this number since a merge, or '{old}': give the "
                "name."
            )
        return index
    raise UsageError(
        f"The model has no class '{reference}' (a name, or a number from 0 to {len(classes) - 1})"
        f"{did_you_mean(reference, names)}"
    )


def open_model(
    artifact: Artifact,
    context: Context,
    device: torch.device,
    *,
    weights: Path | None = None,
    precision: str = "auto",
) -> OpenModel:
    """Load a model with its backbone; the backbone's weights are checked against those of the training."""
    file, tensors = read_model(artifact)
    ref = file.backbone
    if weights is None:
        weights = own_weights(artifact) or _remembered_weights(artifact, context)
    backbone = load_frozen(
        ref.name,
        weights,
        {name: getattr(ref, name) for name in TOKEN_FIELDS},
        context,
        device,
        precision,
        digest=ref.weights_digest,
    )
    _import_heads(artifact, file)
    segmenter = Segmenter(backbone, file.feature_heads, file.class_head, tensors, file.class_of).to(device)
    return OpenModel(artifact, file, segmenter, Geometry(**file.geometry))


def _import_heads(artifact: Artifact, file: ModelFile) -> None:
    """Import the modules of a model's heads; raises UsageError where its method is not installed any more."""
    kinds = {str(head["type"]) for head in file.feature_heads}
    import_heads(kinds)
    if kinds - HEADS.keys() and (missing := not_installed(artifact.manifest.config)):
        raise UsageError(f"The model '{artifact.id}' was made by the {missing}; install it again.")


def features_of(model: Artifact, context: Context) -> Artifact:
    """Return the features that a model was trained on.

    Raises:
        UsageError: the model came from a file, or its features are gone.
    """
    if model.input("features") is None:
        raise UsageError(f"The model '{model.id}' came from a file, without the features it was trained on.")
    return features_behind(model, context)


def code_channels(model: Artifact, context: Context) -> int:
    """Return the channels of a model's codes; of one that a dry run promises, what its method says."""
    if (model.path / _JSON).exists():
        return int(read_model(model)[0].class_head["dim"])
    config = model.manifest.config
    dim = int(features_of(model, context).manifest.summary["dim"])
    return method_of(model.id, config).require_trainer().options(**config["options"]).channels(dim)


def model_geometry(model: Artifact, context: Context) -> Geometry:
    """Return the geometry that a model was trained with; of one that a dry run promises, that of its features."""
    if (model.path / _JSON).exists():
        return Geometry(**read_model(model)[0].geometry)
    return Geometry(**stored_geometry(features_of(model, context).manifest.config))


def class_count(model: Artifact) -> int:
    """Return the number of classes of a model, or what a promised one was told."""
    manifest = model.manifest
    return int({**manifest.config, **manifest.summary}["classes"])


def own_weights(artifact: Artifact) -> Path | None:
    """Return the backbone that a model brings along, if it came from an exported file."""
    folder = artifact.path / BACKBONE
    return next((path for path in (folder / TIMM_WEIGHTS, folder) if path.exists()), None)


def _remembered_weights(artifact: Artifact, context: Context) -> Path | None:
    """Return the weights that the features of this model were extracted with, if they are still there."""
    used = artifact.input("features")
    features = context.workspace.find_key("features", used.key) if used else None
    if features is None:
        return None
    name = features.manifest.execution.get("weights")
    if name and Path(name).exists():
        return Path(name)
    base = features.input("model")  # the features are its codes
    model = context.workspace.find_key("model", base.key) if base else None
    return (own_weights(model) or _remembered_weights(model, context)) if model else None
