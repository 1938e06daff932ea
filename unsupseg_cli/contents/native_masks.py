"""The masks of an artifact at the size of their images, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.features import features_behind, view_of
from unsupseg_cli.contents.images import images_behind
from unsupseg_cli.contents.masks import MaskReader
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.words import counted
from unsupseg_cli.data.geometry import place
from unsupseg_cli.data.images import image_size
from unsupseg_cli.data.items import Item


@dataclass(frozen=True)
class NativeMask:
    """A mask (H, W) of an image in its own pixels, with its score, and its class ``group``, -1 without one."""

    mask: NDArray[np.bool_]
    score: float
    group: int


class NativeMasks:
    """The masks of an artifact of kind `masks` or `pseudolabels` at the size of the images, by nearest neighbour.

    Attributes:
        items: the images that have a view, in the order of the views.
        mirrored: views that show an image mirrored, which are left out: what they show is shown by others.
        vanished: masks read so far that have no pixel at the size of their image, which are left out too.

    Raises:
        UsageError: the features that pseudo-labels were made from are gone.
        UnsupsegError: the images are gone, or are others by now.
    """

    def __init__(self, artifact: Artifact, context: Context) -> None:
        source = artifact if artifact.manifest.kind == "masks" else features_behind(artifact, context)
        dataset = images_behind(source.manifest, context)
        self._masks = MaskReader(artifact, context)
        self._views: dict[str, list[int]] = {}
        self.mirrored, self.vanished = 0, 0
        for view, key in enumerate(self._masks.views["key"]):
            views = self._views.setdefault(key, [])
            if self._masks.views["flip"][view]:
                self.mirrored += 1
            else:
                views.append(view)
        items = {item.key: item for item in dataset.items}
        self.items: list[Item] = [items[key] for key in self._views]

    def __call__(self, item: Item, size: tuple[int, int] | None = None) -> Iterator[NativeMask]:
        """Yield the masks of an image of a ``size``, by view and number; without one it is read from the image."""
        height, width = size or image_size(item.image, item.reading)
        for view in self._views[item.key]:
            rows, shown = self._masks.rows(view), view_of(self._masks.views, view)
            layers = [place(layer, shown, height, width, VOID) for layer in self._masks.layers[view]]
            for number, (score, group) in enumerate(
                zip(rows.score.tolist(), rows.group.tolist(), strict=True)
            ):
                mask = _whole(layers, number)
                if mask.any():
                    yield NativeMask(mask, score, group)
                else:
                    self.vanished += 1

    def remarks(self) -> list[str]:
        """Return what was left out so far, a line each."""
        views, masks = counted(self.mirrored, "mirrored view"), counted(self.vanished, "mask")
        left_out = {views: self.mirrored, f"{masks} without a pixel at the size of the image": self.vanished}
        return [f"left out: {what}" for what, count in left_out.items() if count]


def _whole(layers: list[NDArray[np.int16]], number: int) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = np.any([layer == number for layer in layers], axis=0)
    return mask
