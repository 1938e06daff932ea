"""The table of formats. This module imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from unsupseg_cli.exchange.labelled import Classes, LabelledImage

FormatName = Literal[
    "coco-panoptic",
    "coco-instances",
    "yolo-seg",
    "cvat",
    "label-studio",
    "voc",
    "hdf5",
    "geojson",
    "gpkg",
]
"""A format is the module of its name, with ``_`` for ``-``."""

FORMATS: tuple[FormatName, ...] = get_args(FormatName)


@dataclass(frozen=True)
class Wishes:
    """What a format may be asked for.

    Attributes:
        things: indices of the classes whose connected regions are objects of their own; None: not said.
        least: pixels below which a region is left out where regions are written one by one.
        url: what the address of an image begins with.
        images: whether files of images are linked, copied or left where they are.
        rasters: georeferenced label maps, by the name of their image.
    """

    things: frozenset[int] | None = None
    least: int = 1
    url: str = ""
    images: Literal["link", "copy", "none"] = "none"
    rasters: tuple[tuple[str, Path], ...] = ()


def suffix_of(name: FormatName) -> str:
    """Return what the name of the file ends in, empty for a format of several files in a folder."""
    suffix: str = import_module(f"unsupseg_cli.exchange.{name.replace('-', '_')}").SUFFIX
    return suffix


def write(
    name: FormatName, out: Path, classes: Classes, images: Iterable[LabelledImage], wishes: Wishes
) -> list[str]:
    """Write labelled images in a format; return what was left out or changed, a line each.

    Args:
        name: of the format.
        out: the file, or an empty folder.
        classes: of the label maps, by ascending id.
        images: one after the other.
        wishes: see `Wishes`; a format reads those that it has.

    Raises:
        UsageError: the classes do not fit into the format.
    """
    remarks: list[str] = import_module(f"unsupseg_cli.exchange.{name.replace('-', '_')}").write(
        out, classes, images, wishes
    )
    return remarks
