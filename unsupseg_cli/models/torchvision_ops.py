"""Let torchvision import beside a PyTorch whose build differs from the one it was compiled for.

torchvision's wheel from PyPI is compiled for CUDA builds of PyTorch. Beside a CPU build its operators do
not load, and `import torchvision` (hence `import timm`) then fails with "operator torchvision::nms does not
exist". This tool uses none of these operators, so declaring their signatures is enough for the import.
Import this module before timm or torchvision.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SIGNATURES = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True  # the import error that follows names what is missing
    libraries = list(Path(next(iter(spec.submodule_search_locations))).glob("_C.*"))
    try:
        for library in libraries:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return bool(libraries)


if not _operators_load():
    for _name, _signature in _SIGNATURES.items():
        torch.library.define(_name, _signature)
