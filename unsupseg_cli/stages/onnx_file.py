"""A model as one ONNX graph: images of one size in, label maps out, for programs without Python."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.models.frames import FrameSegmenter
from unsupseg_cli.stages.config import PredictConfig
from unsupseg_cli.stages.models import OpenModel
from unsupseg_cli.stages.predict import predict_geometry
from unsupseg_cli.stages.segment import TOKEN_BUDGET


def write_onnx(path: Path, opened: OpenModel, frame: tuple[int, int], size: int | None) -> None:
    """Write the graph of a model for frames (height, width); ``size`` is that of `predict`.

    Input ``frame`` (1, H, W, 3) uint8 RGB; outputs ``labels`` (1, H, W) int32 and ``log_probs`` (1, K, h, w) on the
    token grid. The file's metadata holds the classes (names and colours, JSON), the model's id and whether labels
    were used.

    Raises:
        UsageError: the packages of the extra ``onnx`` are missing, or the frame would have to be tiled.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise UsageError(
            f"An .onnx file needs the package {' and '.join(missing)}: pip install 'unsupseg[onnx]'."
        )
    graph = _frame_segmenter(opened, frame, size)
    example = torch.zeros(1, *frame, 3, dtype=torch.uint8)
    graph(example)  # position embeddings are interpolated, and kept, in the first pass
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own exporter
        program: Any = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            input_names=["frame"],
            output_names=["labels", "log_probs"],
            verbose=False,
        )
    program.model.metadata_props.update(
        classes=json.dumps([entry.model_dump(mode="json") for entry in opened.file.classes]),
        model=opened.artifact.id,
        used_labels=json.dumps(opened.artifact.manifest.used_labels),
    )
    program.save(path)


def _frame_segmenter(opened: OpenModel, frame: tuple[int, int], size: int | None) -> FrameSegmenter:
    geometry: Geometry = predict_geometry(PredictConfig(size=size), opened.geometry)
    patch = opened.segmenter.backbone.patch_size
    (view,) = geometry.views(*frame, patch)
    tokens = (view.height // patch) * (view.width // patch)
    if tokens > TOKEN_BUDGET:
        raise UsageError(
            f"A frame of {frame[0]}x{frame[1]} makes {tokens} patches at this size, and an .onnx file does not tile "
            f"(at most {TOKEN_BUDGET}); give a smaller --size."
        )
    rows, columns = (torch.from_numpy(one) for one in geometry.weights(view, *frame))
    return FrameSegmenter(opened.segmenter, rows, columns).eval()
