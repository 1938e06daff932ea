"""What scores are made from, counted block by block: the counts of blocks add up, whichever process made them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.shards import IMAGES, Shard
from unsupseg_cli.data.items import Item
from unsupseg_cli.inference.evaluation import Pair
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.per_image import PerImage


@dataclass(frozen=True)
class Shown:
    """An image for the sheet: what was compared, uint8 (H, W, 3), and prediction and truth (H, W)."""

    key: str
    image: NDArray[np.uint8]
    prediction: NDArray[np.int16]
    truth: NDArray[np.int16]


@dataclass
class Tally:
    """The counts of some images.

    ``confusion`` is of clusters and classes, ``probe`` of the linear probe's classes and classes, ``per_image`` of
    images each on its own; ``void`` counts pixels without a class.
    """

    confusion: Confusion
    probe: Confusion
    per_image: PerImage
    void: int = 0
    images: int = 0
    shown: list[Shown] = field(default_factory=list)

    @staticmethod
    def empty(clusters: int, classes: int) -> Tally:
        """Return counts of no image."""
        return Tally(Confusion(clusters, classes), Confusion(classes, classes), PerImage(clusters, classes))

    def update(self, pair: Pair, *, per_image: bool, show: bool) -> None:
        """Count an image, also on its own with ``per_image``; keep it for the sheet with ``show``."""
        self.confusion.update(pair.prediction, pair.truth)
        self.void += int((pair.truth == VOID).sum())
        if pair.probed is not None:
            self.probe.update(pair.probed, pair.truth)
        if per_image:
            self.per_image.update(pair.prediction, pair.truth)
        if show:
            self.shown.append(Shown(pair.item.key, pair.image, pair.prediction, pair.truth))
        self.images += 1

    def add(self, other: Tally) -> None:
        """Add the counts of other images."""
        self.confusion.matrix += other.confusion.matrix
        self.probe.matrix += other.probe.matrix
        self.per_image.add(other.per_image)
        self.void, self.images = self.void + other.void, self.images + other.images
        self.shown += other.shown

    def write(self, path: Path) -> None:
        """Write the counts, as `read` reads them."""
        arrays: dict[str, Any] = {
            "confusion": self.confusion.matrix,
            "probe": self.probe.matrix,
            "rates": np.array(self.per_image.rates, np.float64).reshape(-1, 3),
            "counts": np.array([self.void, self.images, self.per_image.skipped]),
            "shown": np.array([shown.key for shown in self.shown], np.str_),
        }
        for number, shown in enumerate(self.shown):
            for name in ("image", "prediction", "truth"):
                arrays[f"{name}-{number}"] = getattr(shown, name)
        np.savez_compressed(path, **arrays)

    @staticmethod
    def read(path: Path) -> Tally:
        """Read counts."""
        with np.load(path, allow_pickle=False) as stored:
            confusion = stored["confusion"]
            tally = Tally.empty(*confusion.shape)
            tally.confusion.matrix, tally.probe.matrix = confusion, stored["probe"]
            tally.per_image.rates = [tuple(rates) for rates in stored["rates"].tolist()]
            tally.void, tally.images, tally.per_image.skipped = map(int, stored["counts"])
            names = ("image", "prediction", "truth")
            tally.shown = [
                Shown(str(key), *(stored[f"{name}-{number}"] for name in names))
                for number, key in enumerate(stored["shown"])
            ]
        return tally


class TallyWriter:
    """Counts images block by block; counted blocks survive a kill.

    Args:
        draft: of the evaluation.
        items: the labelled images.
        empty: counts of no image.
        shard: the blocks that are counted here.
        context: of the call, whose files stay as they were.
    """

    def __init__(
        self, draft: Draft, items: Sequence[Item], empty: Tally, shard: Shard, context: Context
    ) -> None:
        self._draft, self._empty, self._context = draft, empty, context
        starts = range(0, len(items), IMAGES)
        self._blocks = [items[start : start + IMAGES] for start in starts]
        self._todo = [
            block for block in shard.take(range(len(self._blocks))) if not draft.is_done(_part(block))
        ]

    def todo(self) -> list[Item]:
        """Return the images of this shard that are not counted yet."""
        return [item for block in self._todo for item in self._blocks[block]]

    def count(
        self, pairs: Iterator[Pair], skipped: dict[str, str], per_image: bool, shown: Collection[str]
    ) -> None:
        """Count the images that are left to do.

        Args:
            pairs: of these images, in their order, but for those that are skipped.
            skipped: why images are left out, by key; it has those of a block before the first pair of the next.
            per_image: also count each image on its own.
            shown: keys of the images that the sheet shows.
        """
        waiting = next(pairs, None)
        for block in self._todo:
            keys = {item.key for item in self._blocks[block]}
            tally = Tally.empty(self._empty.confusion.clusters, self._empty.confusion.classes)
            while waiting is not None and waiting.item.key in keys:
                tally.update(waiting, per_image=per_image, show=waiting.item.key in shown)
                waiting = next(pairs, None)
            left_out = [item.key for item in self._blocks[block] if item.key in skipped]
            self._finish(block, tally, {key: skipped[key] for key in left_out})
        assert waiting is None, "pairs of other images, or in another order"

    def _finish(self, block: int, tally: Tally, skipped: dict[str, str]) -> None:
        items = self._blocks[block]
        self._context.sources.require_unchanged(item.image for item in items)
        self._context.sources.require_unchanged(item.label for item in items if item.label)
        path = self._path(block)
        tally.write(path)
        self._draft.finish(_part(block), skipped, [path])

    def missing(self) -> int:
        """Return how many blocks, of all shards, are not counted."""
        return sum(not self._draft.is_noted(_part(block)) for block in range(len(self._blocks)))

    def close(self) -> tuple[Tally, dict[str, str]]:
        """Return the counts of all images, and why images were left out."""
        whole, skipped = self._empty, dict[str, str]()
        for block in range(len(self._blocks)):
            self._draft.bring([self._path(block)])
            whole.add(Tally.read(self._path(block)))
            skipped |= self._draft.note(_part(block))
        return whole, skipped

    def _path(self, block: int) -> Path:
        return self._draft.folder / f".counts-{block:06d}.npz"


def _part(block: int) -> str:
    return f"block-{block:06d}"
