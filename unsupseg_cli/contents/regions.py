"""Reading a `regions` artifact: features of boxes, and where these lie."""

from __future__ import annotations

import numpy as np

from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.methods.interface import RegionSet


def read_regions(artifact: Artifact, features: FeatureSet) -> RegionSet:
    """Open the regions of the images that some features were extracted from.

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
        view=np.array([view_of[key] for key in views["key"]], np.int64),
        parent=np.array(views["parent"], np.int64),
        tag=np.array(views["tag"], np.int64),
        box=np.array(views["box"], np.float64),
        same_network=_network(regions) == _network(features),
    )


def _network(features: FeatureSet) -> tuple[object, ...]:
    """Return what tells apart the networks of CLS tokens: weights, and the block that they are taken from."""
    manifest = features.artifact.manifest
    return manifest.summary["weights_digest"], manifest.config.get("layer"), manifest.config.get("pos_embed")
