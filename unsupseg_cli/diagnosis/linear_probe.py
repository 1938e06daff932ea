"""The linear probe of `eval`: a supervised diagnosis of what the codes hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.clustering.linear import fit_linear_probe
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.images import reopen
from unsupseg_cli.contents.model import ModelFile, OpenModel, features_of, read_model
from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.data.datasets import Dataset
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import image_size
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.labels import LabelSpace
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.models.linear_model import LinearModel

_BATCH = 8
_STRIDE = 4  # labels are compared at a quarter of the view's resolution, finer than any patch


def fit_probe(
    model: OpenModel,
    scored: Dataset,
    space: LabelSpace,
    context: Context,
    *,
    labels: Path | None,
    class_file: Path | None,
    label_suffix: str | None,
    steps: int,
    seed: int,
) -> OpenModel:
    """Return the model with its class head replaced by a linear one fitted on the training split's labels.

    Raises:
        UsageError: the model has no codes, the features that it was trained on are gone, their images have no labels,
            or the split to be scored is the training split itself.
    """
    linear = model.require_codes()
    files = {"labels": labels, "class_file": class_file, "label_suffix": label_suffix}
    features, train = training_data(model.artifact, scored, files, context)
    geometry = Geometry(**model.file.geometry)
    items = {item.key: item for item in train.items if item.label is not None}
    views = [view for view, key in enumerate(features.views["key"]) if key in items]
    if not views:
        raise UsageError(
            f"No training image of '{train.root}' has a label, so no linear probe can be fitted."
        )
    context.reporter.info(f"linear probe: {len(views)} labelled views of split '{train.split}'")
    targets = [
        _view_labels(features, view, items[features.views["key"][view]], geometry, space)
        for view in context.reporter.track(views, "read labels", total=len(views))
    ]
    heads = _remaining_heads(linear, features)
    passes = 0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal passes
        order = torch.randperm(
            len(views), generator=torch.Generator().manual_seed(seeds.stream(seed, "probe", passes))
        ).tolist()
        passes += 1
        for start in range(0, len(order), _BATCH):
            for index in order[start : start + _BATCH]:
                tokens = features.tokens([views[index]])[0][None]
                with torch.inference_mode():
                    codes = tokens
                    for head in heads:
                        codes = head(codes)
                yield codes.clone(), targets[index][None].long()

    dim = int(linear.class_head.weight.shape[1])
    draw = seeds.stream(seed, "probe")
    probe = fit_linear_probe(
        batches, len(space.names), dim, steps=steps, seed=draw, reporter=context.reporter
    )
    return _with_head(model, linear, probe.weight, probe.bias)


def training_data(
    model: Artifact, scored: Dataset, files: dict[str, Any], context: Context
) -> tuple[FeatureSet, Dataset]:
    """Return the features that a model was trained on, and their images with labels; raises as `fit_probe` does."""
    features = features_of(model, context)
    data = features.manifest.data
    assert data is not None
    if data.dataset == scored.name and data.split == scored.split:
        raise UsageError(
            f"The linear probe is fitted on the split '{data.split}' and cannot be scored on it; give another --split."
        )
    return FeatureSet(features), reopen(data, context, **files)


def _view_labels(
    features: FeatureSet, view: int, item: Item, geometry: Geometry, space: LabelSpace
) -> Tensor:
    """Return the labels (h, w) int16 that one view of the features sees, at a quarter of its resolution.

    Those of all views stay in memory.
    """
    height, width = image_size(item.image, item.reading)
    patch = int(features.artifact.manifest.summary["patch_size"])
    shown = features.view(view)
    laid_out = geometry.views(height, width, patch)
    expected = laid_out[shown.crop % len(laid_out)]  # mirror images have numbers beyond those
    if (shown.height, shown.width) != (expected.height, expected.width):
        raise UnsupsegError(
            f"The image '{item.image}' has another size than when its features were extracted."
        )
    truth = geometry.render_label(read_truth(item, space, (height, width)), shown)
    small = truth[_STRIDE // 2 :: _STRIDE, _STRIDE // 2 :: _STRIDE].astype(np.int16)
    return torch.from_numpy(small)


def _remaining_heads(model: LinearModel, features: FeatureSet) -> list[Any]:
    """Return the feature heads that the stored features have not gone through yet."""
    base = features.artifact.input("model")
    return list(model.feature_heads) if base is None else []


def _with_head(model: OpenModel, linear: LinearModel, weight: Tensor, bias: Tensor) -> OpenModel:
    classes, dim = weight.shape
    _, tensors = read_model(model.artifact)
    tensors = {name: value for name, value in tensors.items() if not name.startswith("class_head.")}
    tensors |= {"class_head.weight": weight.detach().cpu(), "class_head.bias": bias.detach().cpu()}
    head = {"type": "linear", "classes": classes, "dim": dim}
    parts = (linear.backbone, model.file.feature_heads, head, tensors)
    segmenter = LinearModel(*parts, patch=linear.multiple).to(linear.device)
    file = ModelFile(**{**model.file.model_dump(), "class_head": head, "class_of": None})
    return replace(model, file=file, segmenter=segmenter)
