"""export: a model and its backbone in one file, which any workspace on any machine takes as a model."""

from __future__ import annotations

from pathlib import Path

import torch

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.stages.config import ExportConfig
from unsupseg_cli.stages.context import Context
from unsupseg_cli.stages.model_files import SUFFIX, FileHeader, take_model, write_model_file
from unsupseg_cli.stages.models import open_model, read_model


def export(config: ExportConfig, model: str | None = None, context: Context | None = None) -> Path:
    """Write a model, its backbone and its classes into one file, which `take_model` reads; return its path.

    Raises:
        UsageError: the file exists and ``context.force`` is not set, its name does not end in .safetensors, or it
            cannot be written.
        UnsupsegError: the backbone's weights are not found.
    """
    context = context or Context()
    out = config.out
    if out.suffix != SUFFIX or out.is_dir():
        raise UsageError(f"--out '{out}' must be a file whose name ends in {SUFFIX}.")
    if out.exists() and not context.force:
        raise UsageError(f"'{out}' exists; give another --out, or --force to replace it.")
    artifact = take_model(model, context)
    opened = open_model(artifact, context, torch.device("cpu"), weights=config.weights, precision="fp32")
    backbone = opened.segmenter.backbone
    weights = backbone.model.state_dict() if backbone.name != "untrained" else {}
    if backbone.meta is not None:  # stored as float16, as `save_backbone` does
        weights = {name: value.half() for name, value in weights.items()}
    header = FileHeader(
        name=artifact.id,
        used_labels=artifact.manifest.used_labels,
        config=artifact.manifest.config,
        model=opened.file,
        backbone=None if backbone.meta is None else dict(backbone.meta),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_model_file(out, header, read_model(artifact)[1], weights)
    except OSError as error:
        raise UsageError(
            f"'{out}' cannot be written ({error.strerror or error}); give another --out."
        ) from None
    context.reporter.info(f"'{artifact.id}' with its backbone: {out.stat().st_size / 1e6:.1f} MB")
    return out
