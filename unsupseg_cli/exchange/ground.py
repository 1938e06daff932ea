"""Polygons on the ground from GeoTIFFs of classes: what the formats for maps share (rasterio)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.words import counted
from unsupseg_cli.data.rasters import PLACE_BY, require_rasterio
from unsupseg_cli.exchange.labelled import Classes
from unsupseg_cli.exchange.table import Wishes


@dataclass(frozen=True)
class GroundRegion:
    """A connected region of a class, over edges, as a GeoJSON polygon in the coordinates of its image; ``area`` too."""

    image: str
    group: int
    polygon: dict[str, Any]
    area: float


class Ground:
    """The regions of all georeferenced label maps, and those that are too small.

    Args:
        classes: of the label maps.
        wishes: which GeoTIFFs, which classes, and how small a region may be.

    Raises:
        UsageError: there is no GeoTIFF, or rasterio is missing.
    """

    def __init__(self, classes: Classes, wishes: Wishes) -> None:
        require_rasterio("A map of polygons")
        if not wishes.rasters:
            raise UsageError(
                "None of the images tells its place on the ground, so that there are no polygons on a map: predict "
                "GeoTIFFs, or take coco-instances, whose polygons are in pixels."
            )
        self._wishes, self._index_of = wishes, {entry.id: index for index, entry in enumerate(classes)}
        self.left_out = 0

    def systems(self) -> dict[str, Any]:
        """Return the coordinate system of each GeoTIFF by its name, None where it has none."""
        import rasterio

        systems = {}
        for name, path in self._wishes.rasters:
            with rasterio.open(path) as raster:
                systems[name] = raster.crs
        return systems

    def without_system(self, name: str) -> str:
        """Say why a GeoTIFF has no coordinate system, and how its image gets one."""
        import rasterio

        with rasterio.open(dict(self._wishes.rasters)[name]) as raster:
            by = raster.tags().get(PLACE_BY)
        if by:
            return (
                f"'{name}' tells its place by {by}, of which no coordinates are made: bring the image to a coordinate "
                "system (gdalwarp FILE NEW.tif) and predict the new one"
            )
        return (
            f"'{name}' has no coordinate system, without which there are no longitudes and latitudes: assign one "
            "(gdal_edit.py -a_srs EPSG:... FILE) and predict again"
        )

    def __iter__(self) -> Iterator[GroundRegion]:
        """Yield the regions, by image."""
        import rasterio
        from rasterio.features import shapes

        for name, path in self._wishes.rasters:
            with rasterio.open(path) as raster:
                pixel = abs(raster.transform.determinant)
                for polygon, value in shapes(rasterio.band(raster, 1), transform=raster.transform):
                    group = None if value == raster.nodata else self._index_of.get(int(value))
                    if group is None or (
                        self._wishes.things is not None and group not in self._wishes.things
                    ):
                        continue
                    area = sum(
                        (1 if index == 0 else -1) * abs(signed_area(ring))
                        for index, ring in enumerate(polygon["coordinates"])
                    )
                    if area < (self._wishes.least - 0.5) * pixel:
                        self.left_out += 1
                    else:
                        yield GroundRegion(name, group, polygon, area)

    def remarks(self) -> list[str]:
        """Return what was left out, a line."""
        if not self.left_out:
            return []
        return [
            f"left out: {counted(self.left_out, 'region')} of less than {self._wishes.least} pixels (--min-area)"
        ]


def signed_area(ring: list[tuple[float, float]]) -> float:
    """Return the signed area of a closed ring; coordinates are taken from its first point, as they are large."""
    x0, y0 = ring[0]
    points = [(x - x0, y - y0) for x, y in ring]
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairwise(points)) / 2
