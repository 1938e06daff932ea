"""`classes merge --to`: the groups of a model's classes that are most alike."""

from __future__ import annotations

import torch

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.clustering.merging import merge_alike
from unsupseg_cli.contents.images import images_behind
from unsupseg_cli.contents.model import features_of, read_model
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.items import spread
from unsupseg_cli.inference.small_maps import tokens_by_class

_IMAGES = 300  # that are looked at


def alike(model: Artifact, classes: int, context: Context) -> tuple[tuple[str, ...], ...]:
    """Return the groups of more than one class, by name, that leave so many classes; and tell them.

    Raises:
        UsageError: the model has not more classes than that, or no features of whole images.
    """
    entries = read_model(model)[0].classes
    if len(entries) == 1:
        raise UsageError(f"'{model.id}' has one class: there is nothing to merge.")
    if classes >= len(entries):
        raise UsageError(
            f"'{model.id}' has {len(entries)} classes: --to takes a number below that, to merge them until so many are "
            "left."
        )
    features_of(model, context)  # says so where the model came from a file
    items = spread(images_behind(model.manifest, context).items, _IMAGES)
    sums, counts = tokens_by_class(model, items, len(entries), context, torch.device("cpu"))
    groups = [group for group in merge_alike(sums, counts, classes) if len(group) > 1]
    if empty := [entry.name for entry, count in zip(entries, counts, strict=True) if not count]:
        context.reporter.info(f"{', '.join(empty)}: on none of the images, nothing tells where they belong")
    named = tuple(tuple(entries[index].name for index in group) for group in groups)
    for names in named:
        context.reporter.info(f"{', '.join(names)}: one class, under the name of the first")
    return named
