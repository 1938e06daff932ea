"""A model as one ONNX graph: images of one size in, label maps out, for programs without Python."""

from __future__ import annotations

import json
import logging
import warnings
from importlib.util import find_spec
from typing import Any, Literal

import torch

from unsupseg_cli.contents.model import OpenModel
from unsupseg_cli.core.errors import UsageError, reason_of
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.inference.segment import whole_images
from unsupseg_cli.models.frames import FrameSegmenter, SizedSegmenter, TileSegmenter

_ONE_FILE = 1536 * 2**20  # bytes of weights beyond which torch writes a second file


Layout = Literal["frame", "nchw"]


def onnx_program(
    opened: OpenModel, frame: tuple[int, int], size: int | None, layout: Layout = "frame"
) -> Any:
    """Return the graph of a model for frames (height, width), ready to be saved; ``size`` is that of `predict`.

    Input ``frame`` (1, H, W, 3) uint8 RGB; outputs ``labels`` (1, H, W) int32, ids of classes, and ``log_probs``
    (1, K, h, w) of the model's cells (the token grid of a linear model). With the layout ``nchw`` input ``image``
    (1, 3, H, W) float32 in [0, 1] and output ``probabilities`` (1, K, H, W). The metadata holds id, name and colour of
    the K classes in order (JSON), the model's id and whether labels were used; of ``nchw`` also what QGIS's plugin
    Deepness reads.

    Raises:
        UsageError: the packages of the extra ``onnx`` are missing, the weights are more than one file holds, the frame
            would have to be tiled, or a network does what has no place in such a graph.
    """
    if any(find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UsageError(
            "An .onnx file needs the packages onnx and onnxscript: pip install 'unsupseg[onnx]'."
        )
    graph = _frame_segmenter(opened, frame, size, layout)
    if (needed := sum(parameter.nbytes for parameter in graph.parameters())) > _ONE_FILE:
        raise UsageError(
            f"The weights of '{opened.segmenter.name}' take {needed / 2**30:.1f} GiB, and an .onnx file holds "
            f"{_ONE_FILE / 2**30} GiB; export NAME.safetensors, or train on a smaller backbone."
        )
    example, names = torch.zeros(1, *frame, 3, dtype=torch.uint8), ["frame", "labels", "log_probs"]
    if layout == "nchw":
        example, names = torch.zeros(1, 3, *frame), ["image", "probabilities"]
    # What the first pass keeps (position embeddings) would else be the exporter's fake tensors.
    graph(example)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own exporter
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        try:
            program: Any = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                input_names=names[:1],
                output_names=names[1:],
                verbose=False,
            )
        except Exception as error:
            if opened.file.network is None:
                raise
            raise UsageError(
                f"The network '{opened.segmenter.name}' cannot be written as an ONNX graph ({reason_of(error)}); "
                "export NAME.safetensors."
            ) from error
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # lines of the source, with the folders of this machine
    program.model.metadata_props.update(
        classes=json.dumps([entry.model_dump(mode="json") for entry in opened.file.classes]),
        model=opened.artifact.id,
        used_labels=json.dumps(opened.artifact.manifest.used_labels),
    )
    if layout == "nchw":
        program.model.metadata_props.update(_of_deepness(opened, frame))
    return program


def _of_deepness(opened: OpenModel, frame: tuple[int, int]) -> dict[str, str]:
    """Return what Deepness reads: JSON values, names by channel.

    Source: qgis-plugin-deepness, "Add metadata to ONNX model".
    """
    names = {channel: entry.name for channel, entry in enumerate(opened.file.classes)}
    return {
        "model_type": json.dumps("Segmentor"),
        "class_names": json.dumps(names),
        "tiles_size": json.dumps(frame[0]),
    }


def _frame_segmenter(
    opened: OpenModel, frame: tuple[int, int], size: int | None, layout: Layout
) -> SizedSegmenter:
    geometry: Geometry = whole_images(opened.geometry, size)
    (view,) = geometry.views(*frame, opened.segmenter.multiple)
    if (pixels := view.height * view.width) > opened.segmenter.most_pixels:
        raise UsageError(
            f"A frame of {frame[0]}x{frame[1]} has {pixels:,} pixels at this size, and an .onnx file does not tile (at "
            f"most {opened.segmenter.most_pixels:,}); give a smaller --size."
        )
    rows, columns = (torch.from_numpy(weights) for weights in geometry.weights(view, *frame))
    if layout == "nchw":
        return TileSegmenter(opened.segmenter, rows, columns).eval()
    ids = [entry.id for entry in opened.file.classes]
    return FrameSegmenter(opened.segmenter, rows, columns, ids).eval()
