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

from unsupseg_cli.artifacts.files import write_json
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.backbone import TOKEN_FIELDS, load_frozen
from unsupseg_cli.contents.images import Context
from unsupseg_cli.core.errors import UnsupsegError, UsageError, did_you_mean
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.methods.registry import import_heads
from unsupseg_cli.models.segmenter import Segmenter

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
    import_heads(str(head["type"]) for head in file.feature_heads)
    segmenter = Segmenter(backbone, file.feature_heads, file.class_head, tensors, file.class_of).to(device)
    return OpenModel(artifact, file, segmenter, Geometry(**file.geometry))


def own_weights(artifact: Artifact) -> Path | None:
    """Return the backbone that a model brings along, if it came from an exported file."""
    folder = artifact.path / BACKBONE
    return next((path for path in (folder / TIMM_WEIGHTS, folder) if path.exists()), None)


def _remembered_weights(artifact: Artifact, context: Context) -> Path | None:
    """Return the weights that the features of this model were extracted with, if they are still there."""
    used = artifact.input("features")
    found = context.workspace.find_key("features", used.key) if used else None
    if found is None:
        return None
    name = found.manifest.execution.get("weights")
    if name and Path(name).exists():
        return Path(name)
    below = found.input("model")  # the features are its codes
    model = context.workspace.find_key("model", below.key) if below else None
    return (own_weights(model) or _remembered_weights(model, context)) if model else None
