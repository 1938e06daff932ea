"""Polygons on the ground as GeoJSON: longitude and latitude (WGS 84), whatever system the images have.

Source of the format: RFC 7946.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.exchange.degrees import ToDegrees, in_degrees
from unsupseg_cli.exchange.ground import Ground
from unsupseg_cli.exchange.labelled import Classes, LabelledImage
from unsupseg_cli.exchange.table import Wishes

SUFFIX = ".geojson"
_WGS84 = "OGC:CRS84"  # longitude first
_FIGURES = 10  # of an area, whose unit may be a square degree


def write(out: Path, classes: Classes, images: Iterable[LabelledImage], wishes: Wishes) -> list[str]:
    """Write a feature for each region, with class, name, colour, image and area in square units of the image."""
    ground = Ground(classes, wishes)
    degrees_of = {name: _to_degrees(name, system, ground) for name, system in ground.systems().items()}
    with out.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, region in enumerate(ground):
            entry = classes[region.group]
            feature = {
                "type": "Feature",
                "properties": {
                    "class": entry.id,
                    "name": entry.name,
                    "fill": f"#{bytes(entry.color).hex()}",
                    "image": region.image,
                    "area": float(f"{region.area:.{_FIGURES}g}"),
                },
                "geometry": in_degrees(region.polygon["coordinates"], degrees_of[region.image]),
            }
            file.write(("," if number else "") + "\n" + json.dumps(feature))
        file.write("\n]}\n")
    return ground.remarks()


def _to_degrees(name: str, system: Any, ground: Ground) -> ToDegrees:
    """Return what maps points of an image's coordinate system to longitude and latitude."""
    from rasterio.warp import transform

    if system is None:
        raise UsageError(f"{ground.without_system(name)}, or take --format gpkg, which does without.")

    def to_degrees(points: NDArray[np.float64]) -> NDArray[np.float64]:
        try:
            degrees = np.array(transform(system, _WGS84, *points.T)).T
        except Exception:  # PROJ raises anything for systems and places that it does not know
            degrees = np.full_like(points, np.nan)
        if not np.isfinite(degrees).all():
            raise UsageError(
                f"The coordinate system of '{name}' cannot be brought to longitude and latitude: it is a local one, or "
                "the image lies where it is not defined. Assign the right one (gdal_edit.py -a_srs EPSG:... FILE) and "
                "predict again, or take --format gpkg, which keeps it."
            )
        return degrees

    return to_degrees
