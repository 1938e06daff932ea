"""The pixels of the views of a features artifact, rendered from the images again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.contents.features import FeatureSet, stored_geometry
from unsupseg_cli.contents.images import describe_images, reopen
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.loader import resolve_workers


class ViewImages:
    """What the views of some features show, read from the images of their data set.

    Raises:
        UnsupsegError: the images are gone, or are not those that the features were extracted from.
    """

    def __init__(self, features: FeatureSet, context: Context, workers: int | None = None) -> None:
        manifest = features.artifact.manifest
        data = manifest.data
        assert data is not None
        try:
            dataset = reopen(data)
        except UsageError as error:
            raise UnsupsegError(
                f"{error} If the images were moved, run `extract` on them with --force, so that '{manifest.id}' knows "
                "where they are."
            ) from None
        if describe_images(dataset, context).fingerprint != data.fingerprint:
            raise UnsupsegError(
                f"The images in '{data.root}' are not those of the features '{manifest.id}': some were changed, added "
                "or removed since; run `extract` again."
            )
        self._paths = {item.key: item.image for item in dataset.items}
        self._geometry = Geometry(**stored_geometry(manifest.config))
        self._features, self._views = features, features.views
        self._workers = max(1, resolve_workers(workers))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Height and width of each view, (N, 2)."""
        return self._features.sizes

    def __call__(self, views: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Return what some views show, each (H, W, 3) uint8."""
        with ThreadPoolExecutor(self._workers) as pool:  # decoding and resizing leave Python's lock
            return list(pool.map(self._render, views))

    def _render(self, view: int) -> NDArray[np.uint8]:
        path = self._paths[self._views["key"][view]]
        return self._geometry.render(read_image(path), self._features.view(view))
