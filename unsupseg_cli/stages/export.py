"""export: a model and its backbone in one file, which any workspace on any machine takes as a model."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unsupseg_cli.artifacts.canonical import digest_file
from unsupseg_cli.artifacts.files import disk_errors, write_json
from unsupseg_cli.artifacts.workspace import Artifact, Draft, Recipe
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.models.backbone import JSON_NAME, TENSORS_NAME
from unsupseg_cli.stages.config import ExportConfig
from unsupseg_cli.stages.context import Context
from unsupseg_cli.stages.models import (
    BACKBONE,
    TIMM_WEIGHTS,
    ModelFile,
    open_model,
    read_model,
    write_model,
)

STAGE_VERSION = 1
FORMAT = 1
_SUFFIX = ".safetensors"
_HEADER = "unsupseg"
_HEADS, _BACKBONE = "heads.", "backbone."


class ExportHeader(BaseModel):
    """What an exported file says of itself beside the tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT
    name: str
    used_labels: bool
    config: dict[str, Any]
    model: ModelFile
    backbone: dict[str, Any] | None
    """The JSON beside the backbone's weights; None for a backbone that timm builds by its name."""


def export(config: ExportConfig, model: str | None = None, context: Context | None = None) -> Path:
    """Write a model, its backbone and its classes into one file, which `take_model` reads; return its path.

    Raises:
        UsageError: the file exists and ``context.force`` is not set, or its name does not end in .safetensors.
        UnsupsegError: the backbone's weights are not found.
    """
    context = context or Context()
    out = config.out
    if out.suffix != _SUFFIX:
        raise UsageError(f"--out '{out}' must end in {_SUFFIX}.")
    if out.exists() and not context.force:
        raise UsageError(f"'{out}' exists; give another --out, or --force to replace it.")
    artifact = take_model(model, context)
    opened = open_model(artifact, context, torch.device("cpu"), weights=config.weights, precision="fp32")
    _, tensors = read_model(artifact)
    backbone = opened.segmenter.backbone
    stored = backbone.model.state_dict() if backbone.name != "untrained" else {}
    if backbone.meta is not None:  # written as float16 (`save_backbone`)
        stored = {name: value.half() for name, value in stored.items()}
    header = ExportHeader(
        name=artifact.id,
        used_labels=artifact.manifest.used_labels,
        config=artifact.manifest.config,
        model=opened.file,
        backbone=None if backbone.meta is None else dict(backbone.meta),
    )
    named = {_HEADS + name: value for name, value in tensors.items()}
    named |= {_BACKBONE + name: value for name, value in stored.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(out.parent):
        _write(out, {name: value.contiguous() for name, value in named.items()}, header)
    context.reporter.info(f"'{artifact.id}' with its backbone: {out.stat().st_size / 1e6:.1f} MB")
    return out


def take_model(reference: str | None, context: Context) -> Artifact:
    """Return a model by reference: an artifact, by default the last one, or a file that `export` wrote.

    A file is unpacked into the workspace, once.

    Raises:
        UnsupsegError: the file is no such export, is damaged, or was written by a newer version.
    """
    if reference is None or not reference.endswith(_SUFFIX):
        return context.take("model", reference)
    path = Path(reference)
    if not path.is_file():
        raise UsageError(f"The model file '{path}' does not exist; `unsupseg export` writes one.")
    header, tensors = _read(path)
    file = header.model
    recipe = Recipe(
        kind="model",
        stage="export",
        stage_version=STAGE_VERSION,
        slug=re.sub(r"[^A-Za-z0-9_-]", "_", header.name.rsplit("-", 1)[0])[:80] or "model",
        config={**header.config, "method": file.method, "classes": len(file.classes)},
        weights=digest_file(path),
        execution={"file": str(path)},
        used_labels=header.used_labels,
    )

    def work(draft: Draft) -> dict[str, Any]:
        write_model(draft.folder, file, _part(tensors, _HEADS))
        if backbone := _part(tensors, _BACKBONE):
            folder = draft.folder / BACKBONE
            folder.mkdir(exist_ok=True)
            meta = header.backbone
            save_file(backbone, folder / (TENSORS_NAME if meta else TIMM_WEIGHTS))
            if meta:
                write_json(folder / JSON_NAME, meta)
        return {"method": file.method, "classes": len(file.classes)}

    result, reused = context.workspace.produce(recipe, work, force=context.force)
    return context.say(result, reused)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _write(path: Path, tensors: dict[str, Tensor], header: ExportHeader) -> None:
    """Write the file under another name first, so that a reader never sees a part of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    partial = Path(name)
    try:
        save_file(tensors, partial, metadata={_HEADER: header.model_dump_json()})
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> tuple[ExportHeader, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(_HEADER)
            if text is None:
                raise UsageError(
                    f"'{path}' is no model of `unsupseg export`; weights of a backbone go with extract --weights."
                )
            raw = json.loads(text)
            if int(raw["format_version"]) > FORMAT:
                raise UnsupsegError(
                    f"The model file '{path}' has a newer format than this version reads; update unsupseg."
                )
            header = ExportHeader.model_validate(raw)
            return header, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupsegError(f"The model file '{path}' cannot be read ({reason}); export it again.") from None
