"""Regions out of one forward of each whole image, instead of a forward each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from unsupseg_cli.core.grouping import indices_by
from unsupseg_cli.data.views import cell_shares
from unsupseg_cli.inference.extraction import Embedded, Extraction
from unsupseg_cli.models.class_row import class_row
from unsupseg_cli.models.memory import with_backoff

_IMAGES = 64  # of a block


class MaskedExtraction(Extraction):
    """Regions whose CLS token is that of the whole image, which attends in the last block to their patches alone."""

    def _cut(self, block: int) -> list[range]:
        """Return the rows of blocks of whole images, so that each goes through the network once."""
        first = np.flatnonzero(np.diff(self.views.item, prepend=-1)).tolist()
        return [range(start, stop) for start, stop in pairwise([*first[::_IMAGES], len(self.views)])]

    def _shown_rows(self, rows: range) -> range:
        item = self.views.item
        return range(int(item[rows.start]), int(item[rows.stop - 1]) + 1)

    def _embed_images(
        self, embedded: Embedded, images: list[NDArray[np.uint8]], rows: range
    ) -> Iterator[int]:
        regions = indices_by(self.views.item[rows.start : rows.stop].tolist())  # those of each image
        shown = {
            item: image for item, image in zip(self._shown_rows(rows), images, strict=True) if item in regions
        }
        for places in indices_by(image.shape for image in shown.values()).values():
            items = [list(shown)[place] for place in places]
            yield from self._embed_regions(
                embedded, {item: shown[item] for item in items}, regions, rows.start
            )

    def _embed_regions(
        self,
        embedded: Embedded,
        images: dict[int, NDArray[np.uint8]],
        regions: dict[int, list[int]],
        first: int,
    ) -> Iterator[int]:
        """Embed the regions of images of one size, rows of the block that begins at ``first``; yield their counts."""
        members = [row for item in images for row in regions[item]]
        group, done = embedded.group(members), 0

        def run(items: Sequence[int]) -> list[torch.Tensor]:
            device = self.network.device
            pixels = embedded.stack([images[item] for item in items]).to(device, non_blocking=True)
            shares = [self._shares(item, np.add(regions[item], first)) for item in items]
            row = class_row(self.backbone, self.backbone.normalise(pixels))
            with torch.inference_mode():
                padded = torch.nn.utils.rnn.pad_sequence(shares, batch_first=True).to(device)
                tokens = row.class_token(row.under(padded))
            return [of_image[: len(own)] for of_image, own in zip(tokens, shares, strict=True)]

        for tokens in with_backoff(run, list(images), self.batch):
            embedded.receive(group, "cls", tokens, done, len(members))
            done += len(tokens)
            yield len(tokens)

    def _shares(self, item: int, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return how much of each patch of an image lies under some of its regions, (M, P)."""
        frame, patch = self.shown[item], self.backbone.patch_size
        corners = frame.to_view(self.views.box[rows].reshape(-1, 2, 2)).reshape(-1, 4)
        shares = cell_shares(corners / patch, (frame.height // patch, frame.width // patch))
        return torch.from_numpy(shares).float().flatten(1)
