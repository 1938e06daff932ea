"""export: a model and its backbone in one file, for any workspace on any machine, or for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.files import whole_file
from unsupseg_cli.artifacts.outside import require_outside
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.images import reading_of, windows_side
from unsupseg_cli.contents.model import OpenModel, open_model, read_model
from unsupseg_cli.contents.model_file import FileHeader, write_model_file
from unsupseg_cli.core.errors import UsageError, reason_of
from unsupseg_cli.core.labels import moved_without_holes
from unsupseg_cli.inference.onnx_program import onnx_program
from unsupseg_cli.pipeline.inputs import take_artifact
from unsupseg_cli.pipeline.options import ExportConfig


def export(config: ExportConfig, model: str | None = None, context: Context | None = None) -> Path:
    """Write a model, the backbone that it stands on and its classes into one file; return its path.

    `take_model` reads a ``.safetensors`` file; `onnx_program` describes an ``.onnx`` file.

    Raises:
        UsageError: the file exists and ``context.force`` is not set, or it cannot be written.
        UnsupsegError: the backbone's weights are not found.
    """
    context = context or Context()
    out = config.out
    require_outside(out)
    if out.is_dir():
        raise UsageError(f"--out '{out}' is a folder; give the name of a file.")
    if out.exists() and not context.force:
        raise UsageError(f"'{out}' exists; give another --out, or --force to replace it.")
    artifact = take_artifact("model", model, context)
    opened = open_model(artifact, context, torch.device("cpu"), weights=config.weights, precision="fp32")
    save = _save_onnx(opened, config) if config.frame else _save_model(artifact, opened)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as unfinished:
            save(unfinished)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"'{out}' cannot be written ({reason_of(error)}); give another --out.") from None
    if config.frame and (reading := reading_of(artifact).to_json()):
        context.reporter.warn(
            f"the model was trained on images read by {json.dumps(reading)}, and an .onnx file takes 8-bit RGB: bring "
            "images to that first"
        )
    ids = [entry.id for entry in opened.file.classes]
    if config.layout == "nchw" and (moved := moved_without_holes(ids)):
        context.reporter.warn(
            f"'probabilities' has no channels for ids that merges took away: {moved} by channel, and so in the maps of "
            "programs that number classes by it"
        )
    with_backbone = " with its backbone" if opened.file.backbone else ""
    context.reporter.info(f"'{artifact.id}'{with_backbone}: {out.stat().st_size / 1e6:.1f} MB")
    return out


def _save_onnx(opened: OpenModel, config: ExportConfig) -> Callable[[Path], None]:
    assert config.frame is not None
    program = onnx_program(opened, config.frame, config.size, config.layout)
    return lambda path: program.save(path)


def _save_model(artifact: Artifact, opened: OpenModel) -> Callable[[Path], None]:
    backbone = opened.segmenter.backbone
    meta = backbone.meta if backbone else None
    weights = backbone.model.state_dict() if backbone and backbone.name != "untrained" else {}
    if meta is not None:  # stored as float16, as `save_backbone` does
        weights = {name: value.half() for name, value in weights.items()}
    reading, side = reading_of(artifact).to_json(), windows_side(artifact)
    images = {"reading": reading} if reading else {}
    images |= {"windows": {"side": side}} if side else {}
    header = FileHeader(
        format_version=opened.file.format_version,
        name=artifact.id,
        used_labels=artifact.manifest.used_labels,
        config={**artifact.manifest.config, **images},
        model=opened.file,
        backbone=None if meta is None else dict(meta),
    )
    return partial(write_model_file, header=header, heads=read_model(artifact)[1], backbone=weights)
