"""Writing and opening a `model` artifact: weights, and in ``model.json`` the way from image to classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.files import write_json
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.backbone import TOKEN_FIELDS, load_frozen
from unsupseg_cli.contents.features import features_behind, stored_geometry
from unsupseg_cli.core.bounds import LARGEST_CLASS, require_bounded
from unsupseg_cli.core.errors import UnsupsegError, UsageError, did_you_mean
from unsupseg_cli.core.labels import as_ranges
from unsupseg_cli.core.options import Layer
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.methods.interface import TrainedHead, TrainedNetwork
from unsupseg_cli.methods.registry import import_heads, method_of, not_installed
from unsupseg_cli.models.backbone import Backbone, resolve_precision
from unsupseg_cli.models.dense import DenseModel
from unsupseg_cli.models.heads import (
    HEADS,
    build_class_head,
    build_head,
    build_network,
    load_part,
)
from unsupseg_cli.models.linear_model import LinearModel
from unsupseg_cli.models.network_model import NetworkModel
from unsupseg_cli.report.palette import class_colors

_JSON, _TENSORS = "model.json", "model.safetensors"
BACKBONE, TIMM_WEIGHTS = "backbone", "weights.safetensors"
FORMAT = 2
"""The newest version of ``model.json`` that is read."""


Byte = Annotated[int, Field(ge=0, le=255)]


class BackboneRef(BaseModel):
    """Which frozen backbone a model stands on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weights_digest: str
    layer: Layer = -1
    norm: bool = True
    pos_embed: Literal["original", "timm"] = "original"
    position: float = Field(0.0, ge=0, le=10)
    debias: int = Field(0, ge=0, le=256)


class ClassEntry(BaseModel):
    """One discovered class: an id that it keeps for life, and a name, ``class ID`` until someone gives it another."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int = Field(ge=0, le=LARGEST_CLASS)
    name: str
    color: tuple[Byte, Byte, Byte]


class ModelFile(BaseModel):
    """The content of ``model.json``: the way from image to classes.

    Format 1 is a linear model: backbone, feature heads, class head. Format 2 ends in a ``network`` instead, on a
    backbone and feature heads, or on the image alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1, 2] = 1
    method: str = Field(pattern="^[A-Za-z0-9_-]+$")
    backbone: BackboneRef | None
    feature_heads: list[dict[str, Any]]
    class_head: dict[str, Any] | None = None
    network: dict[str, Any] | None = None
    geometry: dict[str, Any]
    classes: list[ClassEntry]
    """By ascending id. A class's place in the list is that of its scores, and its index everywhere inside."""
    class_of: list[int] | None = None
    """The index of the class of each output, where some were merged."""

    @field_validator("classes", mode="before")
    @classmethod
    def _with_ids(cls, classes: Any) -> Any:
        """Give entries without an id, those of a model that nothing was merged in, their index."""
        if not isinstance(classes, list):
            return classes
        return [
            {"id": index, **entry} if isinstance(entry, dict) else entry
            for index, entry in enumerate(classes)
        ]

    @model_validator(mode="after")
    def _is_one_kind(self) -> ModelFile:
        linear = self.class_head is not None and self.backbone is not None and self.network is None
        dense = self.network is not None and self.class_head is None
        if not (linear if self.format_version == 1 else dense):
            raise ValueError("expected a backbone and a class head in format 1, a network in format 2")
        if self.backbone is None and self.feature_heads:
            raise ValueError("feature heads need a backbone")
        for description in (*self.feature_heads, self.class_head, self.network):
            require_bounded(description)
        Geometry(**self.geometry)
        ids = [entry.id for entry in self.classes]
        if ids != sorted(set(ids)):
            raise ValueError(f"expected ascending ids of classes, found {ids}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_implied(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the part of the other kind of model, and ids that are the indices of their classes."""
        content: dict[str, Any] = serialize(self)
        del content["network" if self.network is None else "class_head"]
        if all(entry.id == index for index, entry in enumerate(self.classes)):
            for entry in content["classes"]:
                del entry["id"]
        return content

    @property
    def outputs(self) -> int:
        """The scores that the class head or the network gives, K."""
        return int((self.class_head or self.network or {})["classes"])

    @property
    def index_of_outputs(self) -> list[int]:
        """The index of the class of each output, (K,)."""
        return list(range(self.outputs)) if self.class_of is None else self.class_of

    @property
    def entries_of_outputs(self) -> list[ClassEntry]:
        """The class of each output, (K,)."""
        return [self.classes[index] for index in self.index_of_outputs]

    @property
    def outputs_of_classes(self) -> list[list[int]]:
        """The outputs that each class is made of, ascending."""
        outputs: list[list[int]] = [[] for _ in self.classes]
        for output, index in enumerate(self.index_of_outputs):
            outputs[index].append(output)
        return outputs


@dataclass(frozen=True)
class OpenModel:
    """A model ready to use."""

    artifact: Artifact
    file: ModelFile
    segmenter: DenseModel
    geometry: Geometry

    def require_codes(self) -> LinearModel:
        """Return the model as a linear one, which has codes; raises UsageError where it is of another kind."""
        require_codes(self.artifact, self.file)
        assert isinstance(self.segmenter, LinearModel)
        return self.segmenter


def write_model(folder: Path, file: ModelFile, tensors: dict[str, Tensor]) -> None:
    """Write the two files of a model."""
    unmerged = {"class_of"} if file.class_of is None else set()
    write_json(folder / _JSON, file.model_dump(mode="json", exclude=unmerged))
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, folder / _TENSORS)


def read_model(artifact: Artifact) -> tuple[ModelFile, dict[str, Tensor]]:
    """Read the description and the tensors of a model artifact.

    Raises:
        UnsupsegError: a file is missing, damaged or of a newer format.
    """
    try:
        raw = json.loads((artifact.path / _JSON).read_text(encoding="utf-8"))
        if int(raw.get("format_version", 0)) > FORMAT:
            raise UnsupsegError(
                f"The model '{artifact.id}' has a newer format than this version reads; update unsupseg."
            )
        file, tensors = ModelFile.model_validate(raw), load_file(artifact.path / _TENSORS)
        _require_finite(tensors)
        return file, tensors
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UnsupsegError(
            f"The model '{artifact.id}' is damaged ({reason}); run `unsupseg verify {artifact.id}` and train again."
        ) from None


def write_trained(
    folder: Path, method: str, trained: TrainedHead | TrainedNetwork, features: Artifact, context: Context
) -> None:
    """Write the model that a training on some features gave: the heads of the features' own model come first.

    Raises:
        UnsupsegError: its parts do not fit; nothing was written.
    """
    try:
        file, tensors = _assemble(method, trained, features, context)
        check_model(file, tensors)
    except (ValueError, KeyError, TypeError, RuntimeError, UnsupsegError) as error:
        reason = " ".join(str(error).split())
        raise UnsupsegError(
            f"The trainer of '{method}' gave a model whose parts do not fit ({reason}); nothing was written."
        ) from None
    write_model(folder, file, tensors)


def _assemble(
    method: str, trained: TrainedHead | TrainedNetwork, features: Artifact, context: Context
) -> tuple[ModelFile, dict[str, Tensor]]:
    """Return the file and the tensors of a model that was trained on some features."""
    if isinstance(trained, TrainedNetwork):
        import_heads([str(trained.network["type"])])
        stands_on_tokens = build_network(trained.network).reads_tokens
        parts: dict[str, Any] = {"format_version": 2, "network": trained.network}
        heads, named = [], {f"network.{name}": value for name, value in trained.tensors.items()}
    else:
        stands_on_tokens, parts = True, {"class_head": trained.class_head}
        heads, named = list(trained.feature_heads), trained.tensors
    backbone, tensors = None, {name: value.detach().cpu().clone() for name, value in named.items()}
    if stands_on_tokens:
        backbone, below, below_tensors = _below(features, context)
        tensors = {_renumber_head(name, len(below)): value for name, value in tensors.items()} | below_tensors
        heads = [*below, *heads]
    file = ModelFile(
        method=method,
        backbone=backbone,
        feature_heads=heads,
        geometry=stored_geometry(features.manifest.config),
        classes=[
            ClassEntry(id=i, name=f"class {i}", color=(int(r), int(g), int(b)))
            for i, (r, g, b) in enumerate(class_colors(trained.classes))
        ],
        **parts,
    )
    return file, tensors


def _below(
    features: Artifact, context: Context
) -> tuple[BackboneRef, list[dict[str, Any]], dict[str, Tensor]]:
    """Return what made the tokens of features: the backbone, and feature heads with their tensors."""
    base = features.input("model")
    if base is not None:
        file, tensors = read_model(context.workspace.get(base.id, "model"))
        assert file.backbone is not None  # only a linear model has codes
        heads = {name: value for name, value in tensors.items() if name.startswith("feature_heads.")}
        return file.backbone, file.feature_heads, heads
    config = features.manifest.config
    backbone = BackboneRef(
        name=config["backbone"],
        weights_digest=features.manifest.summary["weights_digest"],
        **{name: config[name] for name in TOKEN_FIELDS if name in config},  # older features lack some
    )
    return backbone, [], {}


def check_model(file: ModelFile, tensors: dict[str, Tensor]) -> None:
    """Raise an error of some kind unless the parts of a model belong together and hold numbers."""
    Geometry(**file.geometry)
    import_heads(_types(file))
    for index, head in enumerate(file.feature_heads):
        load_part(build_head(head), tensors, f"feature_heads.{index}.")
    if file.class_head is not None:
        load_part(build_class_head(file.class_head), tensors, "class_head.")
    if file.network is not None:
        network = build_network(file.network)
        if network.reads_tokens != (file.backbone is not None):
            backbone = "no backbone" if file.backbone is None else f"the backbone '{file.backbone.name}'"
            raise ValueError(f"the network reads {', '.join(network.reads)}, and the model has {backbone}")
        load_part(network, tensors, "network.")
    class_of = file.index_of_outputs
    if len(class_of) != file.outputs or set(class_of) != set(range(len(file.classes))):
        raise ValueError(f"{file.outputs} outputs of the model do not make {len(file.classes)} classes")
    if (last := file.classes[-1].id) >= file.outputs:
        raise ValueError(f"{file.outputs} outputs of the model make no class of id {last}")
    _require_finite(tensors)


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a tensor holds NaN or infinite values."""
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"'{name}' holds NaN or infinite values")


def _types(file: ModelFile) -> set[str]:
    """Return the types of head and network that a method registers."""
    described = file.feature_heads + ([] if file.network is None else [file.network])
    return {str(description["type"]) for description in described}


def require_codes(model: Artifact, file: ModelFile) -> None:
    """Raise UsageError unless a model is linear: others give classes without codes between."""
    if file.network is not None:
        raise UsageError(
            f"The model '{model.id}' has no codes: its network '{file.network['type']}' gives classes directly; take "
            "the tokens of a backbone, or the codes of a linear model."
        )


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


def class_index(reference: str, classes: Sequence[ClassEntry], outputs: Sequence[Sequence[int]]) -> int:
    """Return the index of the class that a name or an id means.

    ``outputs`` are those that each class is made of: they tell where the id of a merged class went.

    Raises:
        UsageError: there is none, or the reference is one class's id and, as in ``class 3``, in the name of another.
    """
    names, ids = [entry.name for entry in classes], [entry.id for entry in classes]
    if reference in names:
        return names.index(reference)
    if reference.isdecimal() and int(reference) in ids:
        index, old = ids.index(int(reference)), f"class {int(reference)}"
        if old in names and names[index] != old:
            raise UsageError(
                f"'{reference}' may mean '{names[index]}', whose id it is, or '{old}': give the name."
            )
        return index
    if reference.isdecimal() and (into := _merged_into(int(reference), classes, outputs)):
        raise UsageError(f"Class {int(reference)} was merged into {into.id}, '{into.name}': give that one.")
    raise UsageError(
        f"The model has no class '{reference}' (a name, or one of the ids {as_ranges(ids)})"
        f"{did_you_mean(reference, names)}"
    )


def _merged_into(
    number: int, classes: Sequence[ClassEntry], outputs: Sequence[Sequence[int]]
) -> ClassEntry | None:
    """Return the class that took in the one of an id; None where it is of none, or ids were renumbered since."""
    if any(entry.id not in own for entry, own in zip(classes, outputs, strict=True)):
        return None
    return next((entry for entry, own in zip(classes, outputs, strict=True) if number in own), None)


def open_model(
    artifact: Artifact,
    context: Context,
    device: torch.device,
    *,
    weights: Path | None = None,
    precision: str = "auto",
    tokens: Artifact | None = None,
) -> OpenModel:
    """Load a model with its backbone; the backbone's weights are checked against those of the training.

    Where its tokens are read from features (``tokens``), no backbone is loaded.
    """
    file, tensors = read_model(artifact)
    with _told_as_damaged(artifact):
        _import_heads(artifact, file)
    backbone, patch = None, None
    if tokens is None:
        backbone = _open_backbone(artifact, file.backbone, context, device, weights, precision)
    else:
        patch = int(tokens.manifest.summary["patch_size"])
    with _told_as_damaged(artifact):
        segmenter = _build(file, tensors, backbone, patch, resolve_precision(precision, device))
    return OpenModel(artifact, file, segmenter.to(device), Geometry(**file.geometry))


def _open_backbone(
    artifact: Artifact,
    ref: BackboneRef | None,
    context: Context,
    device: torch.device,
    weights: Path | None,
    precision: str,
) -> Backbone | None:
    """Load the backbone that a model stands on, if it does.

    Raises:
        UsageError: weights were named for a model without one.
    """
    if ref is None:
        if weights is not None:
            raise UsageError(f"The model '{artifact.id}' stands on no backbone; leave --weights out.")
        return None
    fields = {name: getattr(ref, name) for name in TOKEN_FIELDS}
    weights = weights or own_weights(artifact) or _remembered_weights(artifact, context)
    return load_frozen(ref.name, weights, fields, context, device, precision, digest=ref.weights_digest)


def _build(
    file: ModelFile, tensors: dict[str, Tensor], backbone: Backbone | None, patch: int | None, precision: str
) -> DenseModel:
    """Return the dense model that a file describes, with its backbone, or for stored tokens of a patch size."""
    if file.network is None:
        assert file.class_head is not None
        return LinearModel(backbone, file.feature_heads, file.class_head, tensors, file.class_of, patch)
    return NetworkModel(
        file.network,
        tensors,
        backbone=backbone,
        feature_heads=file.feature_heads,
        class_of=file.class_of,
        precision=precision,
        patch=patch,
    )


@contextmanager
def _told_as_damaged(artifact: Artifact) -> Iterator[None]:
    """Tell errors of parts and tensors that do not fit as a damaged model."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UnsupsegError(
            f"The model '{artifact.id}' is damaged ({reason}); run `unsupseg verify {artifact.id}` and train again."
        ) from None


def _import_heads(artifact: Artifact, file: ModelFile) -> None:
    """Import the modules of a model's heads; raises UsageError where its method is not installed any more."""
    kinds = _types(file)
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
    """Return the channels of a model's codes; of one that a dry run promises, what its method says.

    Raises:
        UsageError: it has no codes.
    """
    if (model.path / _JSON).exists():
        file = read_model(model)[0]
        require_codes(model, file)
        assert file.class_head is not None
        return int(file.class_head["dim"])
    config = model.manifest.config
    dim = int(features_of(model, context).manifest.summary["dim"])
    channels = method_of(model.id, config).require_trainer().options(**config["options"]).channels(dim)
    if channels is None:
        raise UsageError(f"Models of '{config['method']}' have no codes: they give classes directly.")
    return channels


def model_geometry(model: Artifact, context: Context) -> Geometry:
    """Return the geometry that a model was trained with; of one that a dry run promises, that of its features."""
    if (model.path / _JSON).exists():
        return Geometry(**read_model(model)[0].geometry)
    return Geometry(**stored_geometry(features_of(model, context).manifest.config))


def view_multiple(model: Artifact, context: Context) -> int:
    """Return what the sides of a model's views are multiples of, in pixels; of a promised one, its features' patch."""
    file = read_model(model)[0] if (model.path / _JSON).exists() else None
    patch = 1
    if file is None or file.backbone is not None:
        patch = int(features_of(model, context).manifest.summary["patch_size"])
    if file is None or file.network is None:
        return patch
    _import_heads(model, file)
    return build_network(file.network).grid(patch)[0]


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
