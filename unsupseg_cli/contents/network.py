"""The frozen network of a features artifact in the training loop."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.contents.backbone import TOKEN_FIELDS, load_frozen
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.model import open_model
from unsupseg_cli.contents.views import ViewImages
from unsupseg_cli.models.backbone import Backbone
from unsupseg_cli.models.linear_model import LinearModel
from unsupseg_cli.training.live import Encode, LiveSource


def live_source(
    features: FeatureSet, context: Context, device: torch.device, workers: int | None = None
) -> LiveSource:
    """Return the source that computes tokens as `extract` did, from the images of the features.

    Raises:
        UnsupsegError: the images changed, or the weights are not found or are others.
    """
    backbone, encode = _network(features, context, device)
    images = ViewImages(features, context, workers)
    return LiveSource(images, encode, features.grids, features.dim, device, backbone)


def _network(features: FeatureSet, context: Context, device: torch.device) -> tuple[Backbone, Encode]:
    """Return the backbone, and what gives the tokens of images: its own, or the codes of a model on it."""
    manifest = features.artifact.manifest
    config = manifest.config
    weights = manifest.execution.get("weights") or None
    path = Path(weights) if weights else None
    model = features.artifact.input("model")
    if model is not None:
        artifact = context.workspace.get(model.id, "model")
        opened = open_model(artifact, context, device, weights=path, precision=config["precision"])
        linear = opened.require_codes()
        assert linear.backbone is not None
        backbone, network = linear.backbone, _codes(linear, _patch_tokens(linear.backbone))
    else:
        fields = {name: config[name] for name in TOKEN_FIELDS if name in config}  # older ones lack some
        backbone = load_frozen(
            config["backbone"],
            path,
            fields,
            context,
            device,
            config["precision"],
            digest=manifest.summary["weights_digest"],
        )
        network = _patch_tokens(backbone)

    def encode(images: Tensor) -> Tensor:
        # The clone leaves inference mode: the tokens enter a loss.
        return network(backbone.normalise(images.movedim(1, -1) * 255)).clone()

    return backbone, encode


def _patch_tokens(backbone: Backbone) -> Encode:
    def network(batch: Tensor) -> Tensor:
        tokens: Tensor = backbone(batch, keep=("patch",))["patch"]
        return tokens

    return network


def _codes(linear: LinearModel, tokens: Encode) -> Encode:
    return lambda batch: linear.codes(tokens(batch))
