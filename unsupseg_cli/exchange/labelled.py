"""What every format is made of: classes, images with their label maps, connected regions."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.names import file_path
from unsupseg_cli.core.words import are, counted


@dataclass(frozen=True)
class Class:
    """A class; its id is that of its files. Its index in the list of all stands for it in label maps and regions."""

    id: int
    name: str
    color: tuple[int, int, int]


Classes = Sequence[Class]


@dataclass(frozen=True)
class LabelledImage:
    """A label map (H, W), VOID where there is no class, of the image of a ``key``.

    Label maps have the size of their images, upright. ``file`` is None where it is gone, or ``changed`` since. Of an
    image that is a part of its file (a window, a page, a frame) ``pixels`` reads it, (H, W, 3) uint8.
    """

    key: str
    file: Path | None
    labels: NDArray[np.int16]
    changed: bool = False
    pixels: Callable[[], NDArray[np.uint8]] | None = None

    @property
    def suffix(self) -> str:
        """The suffix of its name, of its file or of a kind that holds its pixels."""
        return Path(self.key).suffix

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.labels.shape
        return height, width


@dataclass(frozen=True)
class Region:
    """A connected region of a class, over edges; ``mask`` shows its box alone, whose corner is at ``top``, ``left``."""

    group: int
    top: int
    left: int
    mask: NDArray[np.bool_]

    @property
    def area(self) -> int:
        """Pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def box(self) -> list[int]:
        """Left, top, width and height."""
        height, width = self.mask.shape
        return [self.left, self.top, width, height]

    def whole(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask (H, W) at the size of the image."""
        mask = np.zeros(size, bool)
        rows, columns = self.mask.shape
        mask[self.top : self.top + rows, self.left : self.left + columns] = self.mask
        return mask


class Regions:
    """Cuts label maps into connected regions, and counts those that are too small.

    Args:
        least: pixels below which a region is left out.
    """

    def __init__(self, least: int) -> None:
        self._least, self.left_out = least, 0

    def of(self, labels: NDArray[np.int16]) -> Iterator[Region]:
        """Yield the regions of a label map (H, W), by class; void has none."""
        for group in np.unique(labels[labels != VOID]).tolist():
            numbered, _ = ndimage.label(labels == group)
            for number, place in enumerate(ndimage.find_objects(numbered), 1):
                region = Region(group, place[0].start, place[1].start, numbered[place] == number)
                if region.area >= self._least:
                    yield region
                else:
                    self.left_out += 1

    def remarks(self) -> list[str]:
        """Return what was left out, a line."""
        if not self.left_out:
            return []
        return [
            f"left out: {counted(self.left_out, 'region')} of less than {self._least} pixels (--min-area)"
        ]


class Images:
    """Brings the files of images along under other names, where that is asked for.

    Args:
        folder: they come below it.
        how: ``link`` writes symbolic links, ``copy`` the files, ``none`` nothing; what is a part of a file is written
            as an image of its own.
    """

    def __init__(self, folder: Path, how: Literal["link", "copy", "none"]) -> None:
        self._folder, self._how = folder, how
        self._gone, self._changed, self._parts = list[str](), list[str](), list[str]()

    def bring(self, image: LabelledImage, stem: str) -> None:
        """Bring the file of an image, called by ``stem``, a relative path, and the image's suffix."""
        if self._how == "none":
            return
        if image.file is None:
            (self._changed if image.changed else self._gone).append(image.key)
            return
        path = self._folder / f"{stem}{image.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if image.pixels is not None:
            self._parts.append(image.key)
            Image.fromarray(image.pixels()).save(path)
        elif self._how == "link":
            path.symlink_to(image.file.resolve())
        else:
            shutil.copyfile(image.file, path)

    def remarks(self) -> list[str]:
        """Return which images were gone, changed or written anew, a line each."""
        told = [
            f"{counted(len(keys), 'image')} {are(len(keys))} {what} (such as '{keys[0]}'): their labels stand alone"
            for keys, what in ((self._gone, "gone"), (self._changed, "changed since"))
            if keys
        ]
        if self._parts and self._how == "link":
            count = len(self._parts)
            parts = (
                f"{counted(count, 'image')} {'is a part of a file' if count == 1 else 'are parts of files'}"
            )
            told.append(f"{parts} (such as '{self._parts[0]}'): written as images of 8 bits, not linked")
        return told


class Names:
    """Names of files without a suffix, one for each image: tools pair images and labels by them."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def of(self, key: str) -> str:
        """Return the name of an image, a relative path; raises UsageError where another one has it."""
        name = file_path(key)
        stem = name[: -len(Path(name).suffix)] if Path(name).suffix else name
        if (other := self._seen.setdefault(stem, key)) != key:
            raise UsageError(
                f"'{other}' and '{key}' would both be '{stem}', by which this format pairs images and labels: rename "
                "one of them and predict again, or take coco-panoptic, which names whole files."
            )
        return stem


def require_low(classes: Classes, most: int, why: str) -> None:
    """Raise UsageError where an id of a class is higher than a format holds."""
    if (last := classes[-1].id) > most:
        raise UsageError(
            f"Classes of ids up to {last} do not fit: {why}; merge those above {most} into lower ones, or take another "
            "--format."
        )
