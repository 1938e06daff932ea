"""Polygons on the ground as GeoJSON: longitude and latitude (WGS 84), whatever system the images have.

Source of the format: RFC 7946.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.exchange.ground import Ground, signed_area
from unsupseg_cli.exchange.labelled import Classes, LabelledImage
from unsupseg_cli.exchange.table import Wishes

SUFFIX = ".geojson"
_WGS84 = "OGC:CRS84"  # longitude first
_DIGITS = 8  # of a degree: a millimetre
_FIGURES = 10  # of an area, whose unit may be a square degree


def write(out: Path, classes: Classes, images: Iterable[LabelledImage], wishes: Wishes) -> list[str]:
    """Write a feature for each region, with class, name, colour, image and area in square units of the image."""
    ground = Ground(classes, wishes)
    from rasterio.warp import transform_geom

    systems = ground.systems()
    if nowhere := [name for name, system in systems.items() if system is None]:
        raise UsageError(
            f"'{nowhere[0]}' has no coordinate system, without which there are no longitudes and latitudes: assign one "
            "(gdal_edit.py -a_srs EPSG:... FILE) and predict again, or take --format gpkg, which does without."
        )
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
                "geometry": _wound(
                    transform_geom(systems[region.image], _WGS84, region.polygon, precision=_DIGITS)
                ),
            }
            file.write(("," if number else "") + "\n" + json.dumps(feature))
        file.write("\n]}\n")
    return ground.remarks()


def _wound(polygon: dict[str, Any]) -> dict[str, Any]:
    """Return a polygon with its outer ring counter-clockwise and its holes clockwise (RFC 7946, section 3.1.6)."""
    rings = [
        ring if (signed_area(ring) > 0) == (number == 0) else ring[::-1]
        for number, ring in enumerate(polygon["coordinates"])
    ]
    return {**polygon, "coordinates": rings}
