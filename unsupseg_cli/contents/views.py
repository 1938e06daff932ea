"""The pixels of the views of a features artifact, rendered from the images again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.contents.features import FeatureSet, stored_geometry
from unsupseg_cli.contents.images import images_behind
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.loader import resolve_workers
from unsupseg_cli.models.dense import DenseModel


class ViewImages:
    """What the views of some features show, read from the images of their data set.

    Raises:
        UnsupsegError: the images are gone, or are not those that the features were extracted from.
    """

    def __init__(self, features: FeatureSet, context: Context, workers: int | None = None) -> None:
        manifest = features.artifact.manifest
        dataset = images_behind(manifest, context)
        self._items = {item.key: item for item in dataset.items}
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
        item = self._items[self._views["key"][view]]
        return self._geometry.render(read_image(item.image, item.reading), self._features.view(view))


class ViewScores:
    """What a model says of the views of some features, at their size.

    Sides that the model's network does not take are continued by the last row and column, which are cut off again.

    Args:
        segmenter: the model.
        features: of the views.
    """

    def __init__(self, segmenter: DenseModel, features: FeatureSet) -> None:
        self._segmenter, self._features = segmenter, features

    def __call__(self, views: Sequence[int], images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        """Return log-probabilities (K, H, W) of some views, whose images (H, W, 3) are given."""
        return [self._score(view, image) for view, image in zip(views, images, strict=True)]

    def _score(self, view: int, image: NDArray[np.uint8]) -> Tensor:
        model, (height, width) = self._segmenter, image.shape[:2]
        if model.placed:
            raise UnsupsegError(
                f"The model '{model.name}' looks at the place of a pixel in its image, which views of features do not "
                "tell it; use a model that does not."
            )
        rows, columns = -height % model.multiple, -width % model.multiple
        padded = np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge")
        if padded.shape[0] * padded.shape[1] > model.most_pixels:
            scores = model.score_tiled(padded, _TILE)
        else:
            scores = model.score(padded[None])[0]
        log_probs = model.log_probs(scores, height + rows, width + columns)
        return log_probs[:, :height, :width].float()


_TILE = 1024  # pixels
