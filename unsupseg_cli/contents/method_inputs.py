"""The inputs of a labeller or a trainer, opened from the artifacts of a call: as much as it declared to need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.graph import read_neighbours
from unsupseg_cli.contents.masks import read_imported, read_masks
from unsupseg_cli.contents.model import class_prototypes, open_model
from unsupseg_cli.contents.network import live_source
from unsupseg_cli.contents.regions import read_regions, read_support
from unsupseg_cli.contents.views import ViewImages, ViewScores
from unsupseg_cli.methods.declaration import Needs
from unsupseg_cli.methods.interface import Inputs, MaskSet
from unsupseg_cli.training.all_tokens import Parts
from unsupseg_cli.training.loop import Checkpoint
from unsupseg_cli.training.tokens import DeviceSource


def open_inputs(
    artifacts: Mapping[str, Artifact],
    needs: Needs,
    context: Context,
    device: torch.device,
    *,
    classes: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    live: bool = False,
    parts: Parts | None = None,
    checkpoint: Checkpoint | None = None,
) -> Inputs:
    """Open what a part declared to need.

    Args:
        artifacts: of the call, by role.
        needs: of the part.
        context: the workspace that they lie in.
        device: where the arrays go, and where the network runs.
        classes: number of classes K.
        seed: of every random choice.
        workers: processes that decode images.
        live: whether the network is wanted where it is optional.
        parts: who makes which part of what is learned of the whole collection; default: this process makes all.
        checkpoint: where a labeller that trains keeps its state; default: nowhere.

    Raises:
        UnsupsegError: an array was not kept, or images or weights are gone or are others by now.
    """
    features = FeatureSet(artifacts["features"])
    for name in needs.arrays:
        features.require(name)
    roles = {port.role for port in needs.reads}
    declared: dict[str, Any] = {}
    if "classes" in needs.identity:
        declared["classes"] = classes
    if "seed" in needs.identity:
        declared["seed"] = seed
    if needs.images:
        declared["images"] = ViewImages(features, context, workers)
    if needs.network != "no":
        runs_in_loop = live or needs.network == "always"
        declared["network"] = live_source(features, context, device, workers) if runs_in_loop else None
    readers: dict[str, tuple[str, Callable[[Artifact], Any]]] = {
        "graph": ("graph", read_neighbours),
        "regions": ("regions", partial(read_regions, features=features, masks=masks_of(artifacts))),
        "support": ("support", read_support),
    }
    for name, (role, read) in readers.items():
        if role in roles:
            declared[name] = read(artifacts[role]) if role in artifacts else None
    if roles & {"pseudolabels", "masks"}:
        declared["masks"] = read_any_masks(artifacts, features, context)
    if "model" in roles and needs.model == "scores":
        declared["segment"] = ViewScores(open_model(artifacts["model"], context, device).segmenter, features)
    elif "model" in roles:
        declared["model"] = _prototypes(artifacts, features.artifact, context, device)
    arrays = DeviceSource(features, device, needs.arrays)
    return Inputs(
        arrays, device=device, reporter=context.reporter, parts=parts, checkpoint=checkpoint, **declared
    )


def read_any_masks(
    artifacts: Mapping[str, Artifact], features: FeatureSet, context: Context
) -> MaskSet | None:
    """Return the masks of the views of some features, if any are among the inputs: pseudo-labels, or from outside."""
    masks = masks_of(artifacts)
    if masks is None:
        return None
    if masks.manifest.kind == "pseudolabels":
        return read_masks(masks, context)
    return read_imported(masks, features, context)


def masks_of(artifacts: Mapping[str, Artifact]) -> Artifact | None:
    """Return the masks among the inputs of a call: of a labeller, or imported."""
    return artifacts.get("pseudolabels") or artifacts.get("masks")


def _prototypes(
    artifacts: Mapping[str, Artifact], features: Artifact, context: Context, device: torch.device
) -> Tensor | None:
    """Return the class prototypes of the model named, or of the one whose codes the features are."""
    base = features.input("model")
    model = artifacts.get("model") or (context.workspace.get(base.id, "model") if base else None)
    weight = class_prototypes(model) if model else None
    return None if weight is None else weight.to(device)
