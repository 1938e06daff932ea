"""Polygons on the ground as a GeoPackage, in the coordinate system of the images: a layer for each system.

Source of the format: OGC GeoPackage Encoding Standard; written by GDAL.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.exchange.ground import Ground, GroundRegion
from unsupseg_cli.exchange.labelled import Classes, LabelledImage
from unsupseg_cli.exchange.table import Wishes

SUFFIX = ".gpkg"


def write(out: Path, classes: Classes, images: Iterable[LabelledImage], wishes: Wishes) -> list[str]:
    """Write a polygon for each region, with class, name, colour, image and area in square units of the image."""
    if find_spec("pyogrio") is None:
        raise UsageError("A GeoPackage needs the package pyogrio: pip install 'unsupseg[geo]'.")
    ground = Ground(classes, wishes)
    systems = {name: system.to_wkt() if system else "" for name, system in ground.systems().items()}
    layers: dict[str, list[GroundRegion]] = {system: [] for system in systems.values()}
    for region in ground:
        layers[systems[region.image]].append(region)
    out.unlink(missing_ok=True)  # an empty file is no GeoPackage that a layer can be added to
    for number, (system, regions) in enumerate(layers.items()):
        _write_layer(out, "regions" if not number else f"regions_{number + 1}", system, regions, classes)
    remarks = ground.remarks()
    if len(layers) > 1:
        remarks.append(f"the images have {len(layers)} coordinate systems: a layer each")
    if "" in layers:
        remarks.append("images without a coordinate system: their polygons have none")
    return remarks


def _write_layer(out: Path, name: str, system: str, regions: list[GroundRegion], classes: Classes) -> None:
    from pyogrio.raw import write as write_layer

    columns: dict[str, Any] = {
        "class": np.array([classes[region.group].id for region in regions], np.int32),
        "name": np.array([classes[region.group].name for region in regions], object),
        "color": np.array([f"#{bytes(classes[region.group].color).hex()}" for region in regions], object),
        "image": np.array([region.image for region in regions], object),
        "area": np.array([region.area for region in regions], np.float64),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # `write` above says so itself
        write_layer(
            str(out),
            geometry=np.array([_wkb(region.polygon["coordinates"]) for region in regions], object),
            field_data=list(columns.values()),
            fields=list(columns),
            crs=system or None,
            geometry_type="Polygon",
            driver="GPKG",
            layer=name,
            append=out.exists(),
        )


def _wkb(rings: list[list[tuple[float, float]]]) -> bytes:
    """Return a polygon as well-known binary, little-endian. Source: OGC Simple Feature Access, 8.2."""
    parts = [b"\x01", np.array([3, len(rings)], "<u4").tobytes()]
    for ring in rings:
        parts += [np.array([len(ring)], "<u4").tobytes(), np.array(ring, "<f8").tobytes()]
    return b"".join(parts)
