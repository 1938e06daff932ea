"""Opening a backbone by name, by weights file, or from a `backbone` artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unsupseg_cli.contents.images import Context
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.models.backbone import Backbone, load_backbone, resolve_precision
from unsupseg_cli.models.backbones import ALIASES, default_backbone
from unsupseg_cli.stages.config import ExtractConfig

TOKEN_FIELDS = ("layer", "norm", "pos_embed", "position")
"""Options of `extract` that decide what a backbone's tokens are, and that a model keeps."""


def open_backbone(config: ExtractConfig, context: Context, device: torch.device) -> Backbone:
    """Return the frozen backbone of an `extract` call, ready on its device."""
    name = default_backbone() if config.backbone == "auto" else config.backbone
    return load_frozen(
        name,
        config.weights,
        {name: getattr(config, name) for name in TOKEN_FIELDS},
        context,
        device,
        config.precision,
    )


def load_frozen(
    name: str,
    weights: Path | None,
    fields: dict[str, Any],
    context: Context,
    device: torch.device,
    precision: str,
    digest: str | None = None,
) -> Backbone:
    """Load a backbone; ``name`` may be the id of a `backbone` artifact of the workspace.

    Raises:
        UnsupsegError: ``digest`` is given and the weights are others.
    """
    if name not in ALIASES and not name.startswith("timm:") and weights is None:
        ids = [artifact.id for artifact in context.workspace.artifacts("backbone")]
        if any(one == name or one.endswith(f"-{name}") for one in ids):
            weights = context.workspace.get(name, "backbone").path
    backbone = load_backbone(name, weights, **fields)
    if digest is not None and backbone.weights_digest != digest:
        raise UnsupsegError(
            f"The weights of backbone '{name}' are not those the model was trained with (digest "
            f"{backbone.weights_digest[:12]}, expected {digest[:12]}); give the right file with --weights."
        )
    return backbone.prepare(resolve_precision(precision, device), device)
