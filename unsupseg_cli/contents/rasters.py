"""What is put together from windows: GeoTIFFs of classes of georeferenced images, and overlays of whole images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.contents.model import ClassEntry
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.names import file_path
from unsupseg_cli.core.words import counted
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.rasters import (
    PLACE_BY,
    Georeference,
    georeference,
    has_rasterio,
    inner_parts,
    is_raster,
    open_raster,
)
from unsupseg_cli.data.reading import Window
from unsupseg_cli.report.palette import PALETTE_VOID, VOID_COLOR, WIDE_VOID

RASTERS = "geo"
_BLOCK = 256  # pixels of a side of the blocks that a GeoTIFF is stored in
_LEAST_OVERVIEW = 256  # pixels of the longer side below which no smaller overview is made
_LARGEST_OVERLAY = 2048  # pixels of the longer side of the overlay of a whole image


def write_rasters(
    folder: Path,
    items: Iterable[Item],
    classes: Sequence[ClassEntry],
    without: Collection[str],
    read: Callable[[Path, str], NDArray[np.int16]],
) -> list[str]:
    """Write ``geo/NAME.tif`` for every georeferenced TIFF; return what users should know of them, a line each.

    Values are class ids, 255 (65535 where ids go beyond 254) is nodata. Place, size and transform are those of the
    image; the colour table is that of the classes, and overviews halve the sides by nearest neighbour. One window is in
    memory at a time.

    Args:
        folder: holds the label maps.
        items: the images or windows.
        classes: of the label maps, by ascending id.
        without: keys of images that have no label map.
        read: gives the class ids in the folder of a key.
    """
    files: dict[Path, list[Item]] = {}
    for item in items:
        if item.key not in without and not (item.reading and item.reading.page) and is_raster(item.image):
            files.setdefault(item.image, []).append(item)
    if not files:
        return []
    if not has_rasterio():
        return [
            f"the place on the ground, known of {counted(len(files), 'image')}, is lost in the label maps, and nodata "
            "is no void: pip install 'unsupseg[geo]' and predict again with --force"
        ]
    nowhere: dict[str, list[str]] = {}
    for image, parts in files.items():
        place = georeference(image)
        if not place.crs:
            nowhere.setdefault(place.by, []).append(image.name)
        path = folder / raster_name(parts[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_raster(path, place, parts, classes, lambda key: read(folder, key))
        _write_overviews(path, place)
    return [_without_system(by, names) for by, names in nowhere.items()]


def _without_system(by: str, names: Sequence[str]) -> str:
    """Say which rasters have no coordinate system, or tell their place ``by`` means that are not read."""
    rasters, such = counted(len(names), "raster"), f"(such as '{names[0]}')"
    if not by:
        return f"{rasters} without a coordinate system {such}, and so are the label maps"
    return (
        f"{rasters} whose place is told by {by} {such}: that is not read, and the label maps have no place; `gdalwarp "
        "FILE NEW.tif` makes a raster with a transform, to be taken instead"
    )


def raster_config(items: Iterable[Item]) -> dict[str, bool]:
    """Return what enters the key of predictions of georeferenced images: whether they are written as such."""
    return {"rasters": True} if has_rasterio() and any(is_raster(item.image) for item in items) else {}


def raster_name(item: Item) -> str:
    """Return the name of the GeoTIFF that an image or window goes into: the image's own, below ``geo``."""
    key = item.key.rpartition("/")[0] if item.reading and item.reading.window else item.key
    return f"{RASTERS}/{file_path(key).removesuffix(item.image.suffix)}.tif"


def world_files(folder: Path, item: Item) -> list[Path]:
    """Write a world file beside the PNG files of a georeferenced image or window; return them."""
    if not (has_rasterio() and is_raster(item.image)) or (item.reading and item.reading.page):
        return []
    if (place := georeference(item.image)).is_nowhere:  # a TIFF that tells nodata only
        return []
    a, b, c, d, e, f = place.transform
    top, left = item.reading.window[:2] if item.reading and item.reading.window else (0, 0)
    x, y = left + 0.5, top + 0.5  # a world file tells the centre of the first pixel
    numbers = (a, d, b, e, a * x + b * y + c, d * x + e * y + f)
    paths = [folder / name / f"{file_path(item.key)}.pgw" for name in ("ids", "color")]
    for path in paths:
        path.write_text("".join(f"{number:.12g}\n" for number in numbers), encoding="ascii")
    return paths


def write_whole_overlays(folder: Path, items: Iterable[Item], without: Collection[str]) -> None:
    """Write ``overlay/NAME.jpg`` for every image that is cut into windows, from theirs; at most 2,048 pixels long.

    Args:
        folder: holds ``overlay``, or has none where no overlays are wanted.
        items: the images or windows.
        without: keys of images that have no label map.
    """
    overlays = folder / "overlay"
    files: dict[tuple[Path, str], dict[Window, Path]] = {}
    for item in items:
        if item.key not in without and item.reading and item.reading.window:
            windows = files.setdefault((item.image, item.key.rpartition("/")[0]), {})
            windows[item.reading.window] = overlays / f"{file_path(item.key)}.jpg"
    if overlays.exists():
        for (image, name), windows in files.items():
            _whole_overlay(georeference(image), windows).save(overlays / f"{file_path(name)}.jpg", quality=90)


def _whole_overlay(place: Georeference, windows: dict[Window, Path]) -> Image.Image:
    """Return the overlays of windows at their places in the image, one of them in memory at a time."""
    inner = inner_parts(list(windows))
    scale = min(1, _LARGEST_OVERLAY / max(place.height, place.width))
    whole = Image.new("RGB", (max(1, round(place.width * scale)), max(1, round(place.height * scale))))
    for window, path in windows.items():
        (top, left, _, _), (row, column, rows, columns) = window, inner[window]
        corner = round(column * scale), round(row * scale)
        size = round((column + columns) * scale) - corner[0], round((row + rows) * scale) - corner[1]
        if min(size) < 1:
            continue
        box = column - left, row - top, column - left + columns, row - top + rows
        with Image.open(path) as overlay:
            whole.paste(overlay.resize(size, Image.Resampling.BOX, box), corner)
    return whole


def _write_raster(
    path: Path,
    place: Georeference,
    parts: Sequence[Item],
    classes: Sequence[ClassEntry],
    read: Callable[[str], NDArray[np.int16]],
) -> None:
    void = PALETTE_VOID if classes[-1].id < PALETTE_VOID else WIDE_VOID
    whole: Window = (0, 0, place.height, place.width)
    windows = {item.key: (item.reading.window if item.reading else None) or whole for item in parts}
    inner = inner_parts(list(windows.values()))
    with open_raster(path, "w", **_profile(place, void)) as raster:
        if void == PALETTE_VOID:
            table = {entry.id: (*entry.color, 255) for entry in classes}
            raster.write_colormap(1, {**table, void: (*VOID_COLOR, 0)})
        if place.by:
            raster.update_tags(**{PLACE_BY: place.by})
        raster.update_tags(1, **{f"class_{entry.id}": entry.name for entry in classes})
        for key, (top, left, _, _) in windows.items():
            first_row, first_column, height, width = inner[windows[key]]
            row, column = first_row - top, first_column - left
            labels = read(key)[row : row + height, column : column + width]
            values = np.where(labels == VOID, void, labels).astype(raster.dtypes[0])
            rows, columns = (first_row, first_row + height), (first_column, first_column + width)
            raster.write(values, 1, window=(rows, columns))


def _write_overviews(path: Path, place: Georeference) -> None:
    from rasterio.enums import Resampling

    longest, factors = max(place.height, place.width), list[int]()
    while longest / (2 ** len(factors)) > _LEAST_OVERVIEW:
        factors.append(2 ** (len(factors) + 1))
    if factors:
        with open_raster(path, "r+") as raster:
            raster.build_overviews(factors, Resampling.nearest)


def _profile(place: Georeference, void: int) -> dict[str, Any]:
    """Return how a GeoTIFF of classes is stored."""
    from rasterio.transform import Affine

    return {
        "height": place.height,
        "width": place.width,
        "count": 1,
        "dtype": "uint8" if void == PALETTE_VOID else "uint16",
        "nodata": void,
        "crs": place.crs or None,
        "transform": Affine(*place.transform),
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "compress": "deflate",
        "BIGTIFF": "IF_SAFER",
    }
