"""What every format is made of: classes, images with their label maps, connected regions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
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
    """A label map (H, W), VOID where there is no class, of the image of a ``key``; its file is None where it is gone.

    Label maps have the size of their images, upright.
    """

    key: str
    file: Path | None
    labels: NDArray[np.int16]

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
        how: ``link`` writes symbolic links, ``copy`` the files, ``none`` nothing.
    """

    def __init__(self, folder: Path, how: Literal["link", "copy", "none"]) -> None:
        self._folder, self._how, self._gone = folder, how, list[str]()

    def bring(self, image: LabelledImage, name: str) -> None:
        """Bring the file of an image, called by ``name``, a relative path with or without its suffix."""
        if self._how == "none":
            return
        if image.file is None:
            self._gone.append(image.key)
            return
        path = self._folder / f"{name.removesuffix(image.file.suffix)}{image.file.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._how == "link":
            path.symlink_to(image.file.resolve())
        else:
            shutil.copyfile(image.file, path)

    def remarks(self) -> list[str]:
        """Return which images were gone, a line."""
        if not self._gone:
            return []
        gone = f"{counted(len(self._gone), 'image')} {are(len(self._gone))} gone"
        return [f"{gone} (such as '{self._gone[0]}'): their labels stand alone"]


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
