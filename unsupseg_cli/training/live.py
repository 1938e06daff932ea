"""Tokens computed while training: image -> augmentation -> frozen network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.models.backbone import Backbone
from unsupseg_cli.models.memory import with_backoff

Images = Callable[[Sequence[int]], list[NDArray[np.uint8]]]
Encode = Callable[[Tensor], Tensor]
Augment = Callable[[Tensor], Tensor]


class LiveSource:
    """A `TokenSource` with the frozen network in the loop, so that images can be augmented.

    Args:
        images: gives what some views show, each (H, W, 3) uint8.
        encode: the frozen network, from images (B, 3, H, W) float in [0, 1] to tokens (B, h, w, C).
        grids: rows and columns of each view's tokens, (N, 2).
        dim: channels C of a token.
        device: where the network is.
        backbone: of the network, for methods that look inside it.
        batch: images at a time.
    """

    def __init__(
        self,
        images: Images,
        encode: Encode,
        grids: NDArray[np.int64],
        dim: int,
        device: torch.device,
        backbone: Backbone,
        batch: int = 32,
    ) -> None:
        self._images, self._encode, self._grids, self._dim = images, encode, grids, dim
        self._device, self.backbone, self._batch = device, backbone, batch

    @property
    def dim(self) -> int:
        """Channels C of a token."""
        return self._dim

    @property
    def grids(self) -> NDArray[np.int64]:
        """Rows and columns of each view, (N, 2)."""
        return self._grids

    def pixels(self, views: Sequence[int]) -> list[Tensor]:
        """Return what some views show, each (3, H, W) float in [0, 1]."""
        return [
            torch.from_numpy(image.copy()).to(self._device).movedim(-1, 0).float() / 255
            for image in self._images(views)
        ]

    def encode(self, images: Sequence[Tensor], augment: Augment | None = None) -> list[Tensor]:
        """Return the tokens (h, w, C) of images (3, H, W) in [0, 1]; images of one size go together.

        Args:
            images: of any sizes that are whole patches.
            augment: changes a batch (B, 3, H, W) in [0, 1] before the network sees it.
        """
        tokens: list[Tensor] = [torch.empty(0)] * len(images)
        for members in indices_by(image.shape for image in images).values():
            batch = torch.stack([images[index] for index in members])
            changed = augment(batch) if augment else batch

            def run(part: Sequence[int], changed: Tensor = changed) -> list[Tensor]:
                return list(self._encode(changed[list(part)]))

            rows = with_backoff(run, range(len(members)), self._batch)
            for index, row in zip(members, rows, strict=True):
                tokens[index] = row
        return tokens

    def tokens(self, views: Sequence[int]) -> list[Tensor]:
        """Return the tokens of some views, each (h, w, C) float32."""
        return self.encode(self.pixels(views))

    def array(self, name: str, views: Sequence[int]) -> list[Tensor]:
        """Raise UnsupsegError: the network in the loop gives patch tokens."""
        raise UnsupsegError(f"Live tokens have no array '{name}': read it from the stored features.")
