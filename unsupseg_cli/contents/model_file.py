"""A model and its backbone in one file: writing it, and taking it wherever a model is expected."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unsupseg_cli.artifacts.canonical import digest_file
from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.files import write_json
from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.model import (
    BACKBONE,
    FORMAT,
    TIMM_WEIGHTS,
    ModelFile,
    check_model,
    write_model,
)
from unsupseg_cli.core.errors import UnsupsegError, UsageError, reason_of
from unsupseg_cli.models.backbone import JSON_NAME, TENSORS_NAME
from unsupseg_cli.models.heads import with_prefix
from unsupseg_cli.models.weight_files import problem_of

STAGE_VERSION = 1
SUFFIX = ".safetensors"
_METADATA = "unsupseg"
_HEADS_PREFIX, _BACKBONE_PREFIX = "heads.", "backbone."


class FileHeader(BaseModel):
    """What the file says of itself beside the tensors; its format is that of the model in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    name: str
    used_labels: bool
    config: dict[str, Any]
    model: ModelFile
    backbone: dict[str, Any] | None
    """The JSON beside the backbone's weights; None for a backbone that timm builds by its name, or without one."""


def write_model_file(
    path: Path, header: FileHeader, heads: dict[str, Tensor], backbone: dict[str, Tensor]
) -> None:
    """Write the one file of a model and its backbone, as `take_model` reads it."""
    tensors = {_HEADS_PREFIX + name: value.contiguous() for name, value in heads.items()}
    tensors |= {_BACKBONE_PREFIX + name: value.contiguous() for name, value in backbone.items()}
    save_file(tensors, path, metadata={_METADATA: header.model_dump_json()})


def take_model(reference: str, context: Context) -> Artifact:
    """Return a model by reference: an artifact, or a file that `export` wrote.

    A file is unpacked into the workspace, once; the last model stays the last one.

    Raises:
        UnsupsegError: the file is no such export, is damaged, or was written by a newer version.
    """
    if reference.endswith(".onnx"):
        raise UsageError(
            f"'{reference}' is for other programs; `export --out NAME{SUFFIX}` writes a model for this one."
        )
    if not reference.endswith(SUFFIX):
        return context.workspace.get(reference, "model")
    path = Path(reference)
    if not path.is_file():
        raise UsageError(f"The model file '{path}' does not exist; `unsupseg export` writes one.")
    header, tensors = _read(path)
    file = header.model
    digest = digest_file(path)
    identity = Identity(
        kind="model",
        stage="export",
        stage_version=STAGE_VERSION,
        slug=re.sub(r"[^A-Za-z0-9_-]", "_", header.name.rsplit("-", 1)[0])[:80] or "model",
        config={
            **header.config,
            "method": file.method,
            "classes": len(file.classes),
            "backbone": file.backbone.name if file.backbone else "none",
            "file": digest,  # in the config too: `compare` tells settings apart by it
        },
        weights=digest,
        execution={"file": str(path)},
        used_labels=header.used_labels,
    )

    def work(draft: Draft) -> dict[str, Any]:
        write_model(draft.folder, file, with_prefix(tensors, _HEADS_PREFIX))
        if backbone := with_prefix(tensors, _BACKBONE_PREFIX):
            folder = draft.folder / BACKBONE
            folder.mkdir(exist_ok=True)
            save_file(backbone, folder / (TENSORS_NAME if header.backbone else TIMM_WEIGHTS))
            if header.backbone:
                write_json(folder / JSON_NAME, header.backbone)
        return {"method": file.method, "classes": len(file.classes)}

    result, reused = context.workspace.produce(identity, work, current=False, tell=context.reporter.info)
    return context.say(result, reused)


def _read(path: Path) -> tuple[FileHeader, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(_METADATA)
            if text is None:
                raise UsageError(
                    f"'{path}' is no model of `unsupseg export`; weights of a backbone go with extract --weights."
                )
            raw = json.loads(text)
            if int(raw["format_version"]) > FORMAT:
                raise UnsupsegError(
                    f"The model file '{path}' has a newer format than this version reads; update unsupseg."
                )
            header = FileHeader.model_validate(raw)
            json.dumps(header.config, allow_nan=False)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            check_model(header.model, with_prefix(tensors, _HEADS_PREFIX))
            return header, tensors
    except UnsupsegError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if problem := problem_of(path):
            raise UnsupsegError(f"The model file '{path}' {problem}.") from None
        reason = reason_of(error)
        raise UnsupsegError(f"The model file '{path}' cannot be read ({reason}); export it again.") from None
