"""Opening a backbone by name, by weights file, or from a `backbone` artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.damage import read_json
from unsupseg_cli.artifacts.identity import UNKNOWN
from unsupseg_cli.contents.digests import remembered_weights
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.models.backbone import JSON_NAME, Backbone, backbone_row, load_backbone, resolve_precision
from unsupseg_cli.models.backbones import ALIASES, TINY
from unsupseg_cli.models.weight_files import require_weights

TOKEN_FIELDS = ("layer", "norm", "pos_embed", "position", "debias")
"""Options of `extract` that decide what a backbone's tokens are, and that a model keeps."""


@dataclass(frozen=True)
class BackboneInfo:
    """What a key and a dry run need of a backbone: the digest of its weights, the channels ``dim`` of a token."""

    name: str
    digest: str
    patch_size: int
    dim: int


def known_backbone(name: str, weights: Path | None, context: Context) -> BackboneInfo:
    """Describe a backbone without loading its weights; their digest may be `UNKNOWN`.

    Raises:
        UsageError: there is no backbone and no artifact of this name.
        UnsupsegError: there is no such file of weights.
    """
    folder = _own_folder(name, weights, context)
    if folder is not None:
        meta = _read_meta(folder / JSON_NAME)
        return BackboneInfo(
            name, str(meta["digest"]), int(meta["patch_size"]), int(meta["arch"]["embed_dim"])
        )
    row = backbone_row(name)
    if name == "tiny":
        digest = str(_read_meta(TINY.with_suffix(".json"))["digest"])
    else:
        digest = _used_weights(name, weights, context)
    return BackboneInfo(name, digest, row.patch_size, row.dim)


def adds_places(name: str, weights: Path | None, context: Context) -> bool:
    """Tell whether a backbone adds embeddings of their place to the tokens; those of timm do."""
    folder = _own_folder(name, weights, context)
    if folder is None and name != "tiny":
        return True
    meta = _read_meta(folder / JSON_NAME if folder else TINY.with_suffix(".json"))
    return bool(meta["arch"].get("pos_embed") != "none")


def _own_folder(name: str, weights: Path | None, context: Context) -> Path | None:
    """Return the folder of a `backbone` artifact, if a name or its weights mean one."""
    if weights is not None:
        return weights if weights.is_dir() else None
    if name in ALIASES or name.startswith("timm:"):
        return None
    return context.workspace.get(name, "backbone").path


def _used_weights(name: str, file: Path | None, context: Context) -> str:
    """Return the digest that weights had when features were made with them in this workspace."""
    if file is not None:
        require_weights(file)
        return remembered_weights(name, file, context) or UNKNOWN
    for listed in reversed(context.workspace.listed("features")):
        if listed.entry.settings.get("backbone") != name:
            continue
        manifest = listed.open().manifest  # of the hub: its file of a name does not change
        if (
            manifest.stage == "extract"
            and manifest.config["backbone"] == name
            and not manifest.execution.get("weights")
        ):
            return str(manifest.summary["weights_digest"])
    return UNKNOWN


def _read_meta(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = read_json(path)
    return value


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
        ids = [listed.entry.id for listed in context.workspace.listed("backbone")]
        if any(artifact_id == name or artifact_id.endswith(f"-{name}") for artifact_id in ids):
            weights = context.workspace.get(name, "backbone").path
    backbone = load_backbone(name, weights, **fields)
    if digest is not None and backbone.weights_digest != digest:
        raise UnsupsegError(
            f"The weights of backbone '{name}' are not those the model was trained with (digest "
            f"{backbone.weights_digest[:12]}, expected {digest[:12]}); give the right file with --weights."
        )
    return backbone.prepare(resolve_precision(precision, device), device)
