"""Masks that a user brings, by image: a COCO file, or a folder of label maps.

Everything is looked over before the first mask is handed out: `check` reads all files and tells what does not fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.progress import Reporter, Silent
from unsupseg_cli.core.words import are, counted
from unsupseg_cli.data.coco import CocoFile, CocoImage, CocoMask, MalformedMask, decode, left_open, read_coco
from unsupseg_cli.data.images import image_size
from unsupseg_cli.data.items import Item, ItemIndex, relative_key
from unsupseg_cli.data.labels import read_label
from unsupseg_cli.data.masks import MOST_MASKS, to_layers
from unsupseg_cli.data.scan import scan_images

_SHOWN = 5  # records that an error names
_USUAL_VOID = {255, 65535}  # of data sets, and of label maps beyond 255 classes of this tool
_NONE = (
    np.empty(0, np.int64),
    np.empty(0, np.float32),
    np.empty(0, np.int64),
    (),
)  # area, score, group, source
_DIAGONALS = np.ones((3, 3), bool)  # pixels that touch at a corner are connected


@dataclass(frozen=True)
class ImageMasks:
    """The masks of one image, in original pixels.

    ``layers`` (L, H, W), see `data.masks`; ``area`` in pixels, ``score``, ``group`` (class, -1 without one) and
    ``source`` (what the mask is called in its file) have one entry per mask; so has ``crowd`` (a group of objects) of
    a COCO file.
    """

    layers: NDArray[np.int16]
    area: NDArray[np.int64]
    score: NDArray[np.float32]
    group: NDArray[np.int64]
    source: tuple[str, ...]
    crowd: tuple[bool, ...] = ()


@dataclass
class Findings:
    """What `check` found: names of the classes, and what was left out and why."""

    class_names: tuple[str, ...] = ()
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    def leave_out(self, noun: str, which: str, count: int = 1) -> None:
        """Count something that is left out: what one of it is called, and which of them."""
        self.left_out[noun, which] += count

    def lines(self) -> list[str]:
        """Return how many of what were left out, such as '2 masks of fewer pixels than 4'."""
        return [f"{counted(count, noun)} {which}" for (noun, which), count in self.left_out.items() if count]


class MaskSource(ABC):
    """Where masks come from.

    Args:
        path: of the file or folder.
        items: the images.
        sizes: height and width of each image.
        least: masks of fewer pixels are left out.
        skip_unknown: leave out masks of other images, instead of refusing them.
    """

    def __init__(
        self,
        path: Path,
        items: Sequence[Item],
        sizes: Sequence[tuple[int, int]],
        *,
        least: int = 1,
        skip_unknown: bool = False,
    ) -> None:
        self.path, self.items, self.sizes = path, items, sizes
        self.least, self.skip_unknown = least, skip_unknown
        self.findings = Findings()
        self._problems: list[str] = []

    @property
    def fits(self) -> bool:
        """Whether nothing was found yet that `check` refuses."""
        return not self._problems

    @abstractmethod
    def files(self) -> dict[str, Path]:
        """Return the files that are read, by a name that does not tell where they lie."""

    @abstractmethod
    def check(self, reporter: Reporter | None = None) -> Findings:
        """Read everything once; a reporter is told the progress.

        Raises:
            UsageError: something does not fit; the message names the first records and how many there are.
        """

    @abstractmethod
    def masks(self, item: int) -> ImageMasks:
        """Return the masks of an image, after `check`."""

    def _refuse(self) -> None:
        """Raise UsageError where there were problems."""
        if self._problems:
            more = len(self._problems) - _SHOWN
            rest = f"; and {more:,} more" if more > 0 else ""
            hint = " (--skip-unknown leaves masks of other images out)" if self._unknown else ""
            raise UsageError(
                f"'{self.path}' does not fit the images in {counted(len(self._problems), 'place')}, so that nothing "
                f"was written: {'; '.join(self._problems[:_SHOWN])}{rest}.{hint}"
            )

    def _remark_on_missing(self, there: Collection[int], path: Path) -> None:
        """Say how many images a file or folder does not know, which differs from knowing that they have no mask."""
        missing = [item.key for number, item in enumerate(self.items) if number not in there]
        if missing:
            self.findings.remarks.append(
                f"{counted(len(missing), 'image')} of the data set {are(len(missing))} not in '{path.name}', and "
                f"{'has' if len(missing) == 1 else 'have'} no mask (the first: '{missing[0]}')"
            )

    unknown = "image", "that the data set does not have"
    """What is matched with the images of the data set."""
    _unknown = False

    def _find(self, index: ItemIndex, name: str, place: str) -> int | None:
        """Return the image that a name means; note a problem where it means none, or several."""
        try:
            item = index.find(name)
        except ValueError as error:
            self._problems.append(f"{place}: {error}")
            return None
        if item is None and self.skip_unknown:
            self.findings.leave_out(*self.unknown)
        elif item is None:
            self._unknown = True
            self._problems.append(f"{place}: the data set has no image '{name}'")
        return item


class CocoSource(MaskSource):
    """Masks of a COCO file; ``listed`` are the images, by number, that the file knows, after `check`.

    ``images_of`` names the images of a list of results, ``crowd`` takes groups too. Without ``from_labels`` a file that
    says of itself that labels were used is refused.
    """

    def __init__(
        self,
        path: Path,
        items: Sequence[Item],
        sizes: Sequence[tuple[int, int]],
        *,
        images_of: Path | None = None,
        crowd: bool = False,
        from_labels: bool = False,
        least: int = 1,
        skip_unknown: bool = False,
    ) -> None:
        super().__init__(path, items, sizes, least=least, skip_unknown=skip_unknown)
        self._images_of, self._crowd, self._from_labels = images_of, crowd, from_labels
        self._records: dict[int, list[CocoMask]] = {}
        self._class_of: dict[int, int] = {}
        self.listed: set[int] = set()

    def files(self) -> dict[str, Path]:
        """Return the file, and that of the images."""
        return {"masks": self.path} | ({"images": self._images_of} if self._images_of else {})

    def check(self, reporter: Reporter | None = None) -> Findings:
        """Match the images, then decode every mask."""
        file = read_coco(self.path, self._images_of)
        if file.used_labels and not self._from_labels:
            raise UsageError(
                f"The masks in '{self.path}' were made with labels, which what is made from them must say: give "
                "--from-labels."
            )
        self._problems += file.problems
        self._class_of = {category: number for number, category in enumerate(sorted(file.categories))}
        self.findings.class_names = tuple(file.categories[category] for category in self._class_of)
        images = self._match(file)
        self.listed = {item for item in images.values() if item is not None}
        records = (reporter or Silent()).track(file.records, "check masks", total=len(file.records))
        for record in records:
            if record.image not in images:
                other = _same_number(record.image)
                there = f"; {other!r} is" if other in images else ""
                self._problems.append(
                    f"{record.place}: its image {record.image!r} is not among the images{there}"
                )
            elif (item := images[record.image]) is not None:
                self._take(item, record)
        self._refuse()
        if not file.records:
            raise UsageError(f"'{self.path}' holds no mask: its list of annotations or results is empty.")
        kept = [record for records in self._records.values() for record in records]
        self.findings.remarks += file.remarks + left_open(kept)
        self._remark_on_missing(self.listed, self._images_of or self.path)
        return self.findings

    def masks(self, item: int) -> ImageMasks:
        """Decode the masks of an image."""
        records, size = self._records.get(item, []), self.sizes[item]
        masks = [decode(record.segmentation, *size) for record in records]
        group = [VOID if record.category is None else self._class_of[record.category] for record in records]
        return ImageMasks(
            layers=to_layers(masks, size),
            area=np.array([mask.sum() for mask in masks], np.int64),
            score=np.array([record.score for record in records], np.float32),
            group=np.array(group, np.int64),
            source=tuple(record.place for record in records),
            crowd=tuple(record.crowd for record in records),
        )

    def _match(self, file: CocoFile) -> dict[int | str, int | None]:
        """Return the number of each image of the file, None where it is left out or a problem."""
        listed = dict(file.images) or {
            record.image: CocoImage(record.image) for record in file.records if isinstance(record.image, str)
        }
        self._refuse()
        if not file.images and any(isinstance(record.image, int) for record in file.records):
            raise UsageError(
                f"The results in '{self.path}' name their images by number; give the file that says which those are "
                "with --images-file (a COCO file with 'images')."
            )
        index, names = ItemIndex(self.items), dict[int, str]()
        matched: dict[int | str, int | None] = {}
        for number, image in listed.items():
            place = f"image {number!r}"
            matched[number] = item = self._find(index, image.name, place)
            if item is None:
                continue
            key, (height, width) = self.items[item].key, self.sizes[item]
            if item in names:
                self._problems.append(f"{place}: both '{names[item]}' and '{image.name}' are '{key}'")
            elif (image.height or height, image.width or width) != (height, width):
                there = f"{image.width or '?'}x{image.height or '?'}"
                self._problems.append(
                    f"{place}: '{key}' is {there} pixels there and {width}x{height} here (width x height)"
                )
            names[item] = image.name
        if listed and not names and not self._problems:
            raise UsageError(
                f"No image of the data set is among the {len(listed):,} that '{self.path}' names: its first image "
                f"is '{self.items[0].key}', the first of the file '{next(iter(listed.values())).name}'."
            )
        return matched

    def _take(self, item: int, record: CocoMask) -> None:
        """Look a record over and keep it, or count or name it."""
        if record.crowd and not self._crowd:
            self.findings.leave_out("mask", "marked iscrowd (groups; --crowd takes them)")
            return
        try:
            area = int(decode(record.segmentation, *self.sizes[item]).sum())
        except MalformedMask as error:
            self._problems.append(f"{record.place} ('{self.items[item].key}'): {error}")
            return
        if area < self.least:
            self.findings.leave_out("mask", f"of fewer pixels than {self.least}")
            return
        records = self._records.setdefault(item, [])
        records.append(record)
        if len(records) == MOST_MASKS + 1:
            self._problems.append(f"'{self.items[item].key}' has more than {MOST_MASKS:,} masks")


class LabelMapSource(MaskSource):
    """Masks of a folder of label maps.

    With ``values`` "masks" each value of a map is one mask, without a class; with "classes" each value is a class, and
    each connected region of it (over edges and corners) a mask. ``background`` are values that are no mask.
    """

    unknown = "label map", "of images that the data set does not have"

    def __init__(
        self,
        path: Path,
        items: Sequence[Item],
        sizes: Sequence[tuple[int, int]],
        *,
        values: Literal["masks", "classes"] = "masks",
        background: Sequence[int] = (0,),
        least: int = 1,
        skip_unknown: bool = False,
    ) -> None:
        super().__init__(path, items, sizes, least=least, skip_unknown=skip_unknown)
        self._values, self._background = values, list(background)
        self._classes: NDArray[np.int64] = np.empty(0, np.int64)
        self.maps: dict[int, Path] = {}
        index = ItemIndex(items, suffix=False)
        paths = list(scan_images(path))
        for map_path in paths:
            name = relative_key(path, map_path)
            item = self._find(index, name, f"'{name}'")
            if item in self.maps:
                key, other = items[item].key, self.maps[item]
                self._problems.append(f"both '{other}' and '{map_path}' are of '{key}'")
            elif item is not None:
                self.maps[item] = map_path
        if not self.maps:
            first = relative_key(path, paths[0]) if paths else "none"
            raise UsageError(
                f"No label map in '{path}' has the relative name of an image: the first image is '{items[0].key}', "
                f"the first map '{first}'."
            )

    def files(self) -> dict[str, Path]:
        """Return the label map of each image that has one."""
        return {self.items[item].key: path for item, path in sorted(self.maps.items())}

    def check(self, reporter: Reporter | None = None) -> Findings:
        """Read every map."""
        present: set[int] = set()
        unlikely: Counter[int] = Counter()
        maps = sorted(self.maps.items())
        for item, path in (reporter or Silent()).track(maps, "check label maps", total=len(maps)):
            try:
                raw = self._read(item, path)
            except UnsupsegError as error:
                self._problems.append(str(error).rstrip("."))
                continue
            _, values, area = self._split(raw)
            kept = values[area >= self.least]
            if len(kept) < len(values):
                self.findings.leave_out("mask", f"of fewer pixels than {self.least}", len(values) - len(kept))
            if len(kept) > MOST_MASKS:
                self._problems.append(f"'{path}' has more than {MOST_MASKS:,} masks")
            present |= set(kept.tolist())
            unlikely.update(_likely_void(set(kept.tolist())))
        self._refuse()
        if unlikely:
            counts = [
                f"{value} in {counted(count, 'label map')}" for value, count in sorted(unlikely.items())
            ]
            self.findings.remarks.append(
                f"values that often mean 'no class' are masks: {', '.join(counts)}; where they mean it, give them as "
                f"--background {','.join(map(str, [*self._background, *sorted(unlikely)]))}"
            )
        self._remark_on_missing(self.maps, self.path)
        self._classes = np.array(sorted(present), np.int64)
        if self._values == "classes":
            self.findings.class_names = tuple(map(str, self._classes.tolist()))
        return self.findings

    def masks(self, item: int) -> ImageMasks:
        """Return the masks of a map in the order of its values; none where there is no map."""
        if item not in self.maps:
            return ImageMasks(to_layers((), self.sizes[item]), *_NONE)
        regions, values, area = self._split(self._read(item, self.maps[item]))
        kept = area >= self.least
        number = np.full(len(values) + 1, VOID, np.int16)  # the last entry is that of no mask
        number[:-1][kept] = np.arange(kept.sum())
        values = values[kept]
        classes = np.searchsorted(self._classes, values)
        return ImageMasks(
            layers=number[regions][None],
            area=area[kept],
            score=np.ones(len(values), np.float32),
            group=classes if self._values == "classes" else np.full(len(values), VOID, np.int64),
            source=tuple(f"value {value}" for value in values.tolist()),
        )

    def _read(self, item: int, path: Path) -> NDArray[np.int32]:
        height, width = self.sizes[item]
        if (size := image_size(path)) != (height, width):
            raise UsageError(
                f"'{path}' is {size[1]}x{size[0]} pixels, its image '{self.items[item].key}' is {width}x{height} "
                "(width x height)"
            )
        raw = read_label(path)
        if raw.ndim != 2:
            raise UsageError(
                f"'{path}' is a picture of {raw.shape[-1]} channels; expected one channel of numbers: give each colour "
                "a number"
            )
        return raw

    def _split(
        self, raw: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the number of the mask of each pixel (H, W), -1 for none, and value and area of each mask (M,)."""
        regions, values = np.full(raw.shape, VOID, np.int64), list[int]()
        for value in np.setdiff1d(raw, self._background).tolist():
            inside, count = raw == value, 1
            parts: NDArray[np.integer[Any]] = inside
            if self._values == "classes":
                parts, count = ndimage.label(inside, _DIAGONALS)
            regions[inside] = parts[inside] + (len(values) - 1)
            values += [value] * count
        area = np.bincount(regions[regions != VOID], minlength=len(values))
        return regions, np.array(values, np.int64), area


def _likely_void(values: set[int]) -> set[int]:
    """Return the values of a map that often mean 'no class'; beside a neighbour they are numbers like others."""
    return {
        value
        for value in values
        if value < 0 or (value in _USUAL_VOID and not {value - 1, value + 1} & values)
    }


def _same_number(image: int | str) -> int | str | None:
    """Return an image's number as text, or the other way round; None for a text that is no number."""
    if isinstance(image, int):
        return str(image)
    return int(image) if image.isascii() and image.isdigit() and len(image) < 20 else None
