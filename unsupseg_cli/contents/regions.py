"""Reading a `regions` artifact: features of boxes, and where these lie."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.methods.interface import RegionSet


def read_regions(artifact: Artifact, features: FeatureSet, masks: Artifact | None = None) -> RegionSet:
    """Open the regions of the images that some features were extracted from.

    Args:
        artifact: the regions.
        features: of the images.
        masks: that are read beside them, if any.

    Raises:
        UnsupsegError: a region is of an image that the features do not have.
    """
    regions = FeatureSet(artifact)
    view_of: dict[str, int] = {}
    for view, key in enumerate(features.views["key"]):
        view_of.setdefault(key, view)
    views = regions.views
    if unknown := [key for key in views["key"] if key not in view_of]:
        raise UnsupsegError(
            f"The regions '{artifact.id}' show '{unknown[0]}', which the features '{features.artifact.id}' do not have "
            f"({len(set(unknown))} such images); extract both from the same images."
        )
    return RegionSet(
        regions,
        view=np.fromiter((view_of[key] for key in views["key"]), np.int64, len(views["key"])),
        parent=views["parent"].numpy().astype(np.int64),
        tag=views["tag"].numpy().astype(np.int64),
        box=views["box"].numpy().astype(np.float64),
        same_network=_network(regions) == _network(features),
        of_masks=_of_masks(artifact, regions, features, masks),
        shown=partial(_shown, regions, features, view_of),
    )


def read_support(artifact: Artifact) -> RegionSet:
    """Open regions of any images, whose ``view`` is -1."""
    regions = FeatureSet(artifact)
    views = regions.views
    parent, tag = (views[name].numpy().astype(np.int64) for name in ("parent", "tag"))
    box = views["box"].numpy().astype(np.float64)
    return RegionSet(regions, view=np.full(len(box), -1, np.int64), parent=parent, tag=tag, box=box)


def _shown(
    regions: FeatureSet, features: FeatureSet, view_of: dict[str, int], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the boxes of some regions in the views of their images, as shares of the views' sides, (M, 4)."""
    boxes = []
    for row in rows.tolist():
        view = features.view(view_of[regions.views["key"][row]])
        corners = view.to_view(np.reshape(regions.views["box"][row], (2, 2))) / [view.width, view.height]
        boxes.append(np.concatenate([corners.min(0), corners.max(0)]))  # a mirrored view turns left and right
    return np.array(boxes).reshape(-1, 4)


def _of_masks(
    artifact: Artifact, regions: FeatureSet, features: FeatureSet, masks: Artifact | None
) -> Callable[[int], NDArray[np.int64]] | None:
    """Return what gives the regions of the masks of a view: imported masks are of its whole image."""
    found_in = artifact.input(masks.manifest.kind) if masks else None
    if masks is None or found_in is None or found_in.id != masks.id:
        return None
    column, keys = (
        ("key", features.views["key"]) if masks.manifest.kind == "masks" else ("parent", range(len(features)))
    )
    rows = indices_by(regions.views[column])
    return lambda view: np.array(rows.get(keys[view], ()), np.int64)


def _network(features: FeatureSet) -> tuple[object, ...]:
    """Return what tells apart the networks: weights, the block that tokens are taken from, the model of codes."""
    manifest, model = features.artifact.manifest, features.artifact.input("model")
    fields = manifest.config.get("layer"), manifest.config.get("pos_embed")
    return manifest.summary["weights_digest"], *fields, model and model.key
