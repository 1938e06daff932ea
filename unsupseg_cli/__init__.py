"""Unsupervised semantic segmentation as a staged pipeline on disk.

The stages are functions that take the same configuration classes as the commands::

    from unsupseg_cli import Context, ExtractConfig, extract

    features = extract(ExtractConfig(dataset="photos"), Context())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unsupseg_cli.contents.images import Context
    from unsupseg_cli.stages.config import (
        EvalConfig,
        ExtractConfig,
        PredictConfig,
        PseudolabelConfig,
        TrainConfig,
    )
    from unsupseg_cli.stages.evaluate import evaluate
    from unsupseg_cli.stages.extract import extract
    from unsupseg_cli.stages.predict import predict
    from unsupseg_cli.stages.pseudolabel import pseudolabel
    from unsupseg_cli.stages.train import train

__all__ = [
    "Context",
    "EvalConfig",
    "ExtractConfig",
    "PredictConfig",
    "PseudolabelConfig",
    "TrainConfig",
    "evaluate",
    "extract",
    "predict",
    "pseudolabel",
    "train",
]

_HOME = {
    "Context": "context",
    "evaluate": "evaluate",
    "extract": "extract",
    "predict": "predict",
    "pseudolabel": "pseudolabel",
    "train": "train",
}


def __getattr__(name: str) -> Any:
    """Import a stage only when it is used, so that the command line starts quickly."""
    if name not in __all__:
        raise AttributeError(f"module 'unsupseg_cli' has no attribute '{name}'")
    return getattr(import_module(f"unsupseg_cli.stages.{_HOME.get(name, 'config')}"), name)
