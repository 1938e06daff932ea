"""Polygons in degrees: every place on the ground lies in the polygon of its class, wherever the image is."""

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from rasterio.features import shapes
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform

from unsupseg_cli.exchange.degrees import in_degrees
from unsupseg_cli.exchange.ground import signed_area

SIDE = 24
TARGET = np.zeros((SIDE, SIDE), np.uint8)
TARGET[4:20, 4:20], TARGET[9:15, 9:15] = 1, 2
MERCATOR = 20037508.342789244  # metres from the middle of the map to its edge


@pytest.mark.parametrize(
    ("system", "place"),
    [
        ("EPSG:32633", from_origin(392000, 5820000, 50, 50)),
        ("EPSG:32701", from_origin(180600, 8100000, 50, 50)),
        ("EPSG:32701", Affine(2000, 1500, 150000, 1500, -2000, 8100000)),
        ("EPSG:32760", from_origin(800000, 8100000, 3000, 3000)),
        ("EPSG:4326", from_origin(179.9992, -10, 1e-4, 1e-4)),
        ("EPSG:4326", from_origin(170, 10, 1, 1)),  # pixels end at the antimeridian
        ("EPSG:4326", from_origin(181, 10, 1, 1)),
        ("EPSG:4326", from_origin(-190, 10, 1, 1)),
        ("EPSG:4326", from_origin(0, 90, 15, 7.5)),
        ("EPSG:4326", from_origin(-180, 90, 15, 7.5)),
        ("EPSG:3857", from_origin(-MERCATOR, 2e7, MERCATOR / 12, 1.5e6)),
        ("EPSG:3857", from_origin(MERCATOR - 12000, 20000, 1000, 1000)),
        ("EPSG:3413", from_origin(-1.25e6, 1.13e6, 1e5, 1e5)),  # round the north pole
        ("EPSG:3031", from_origin(-1.25e6, 1.13e6, 1e5, 1e5)),  # round the south pole
        ("EPSG:2053", from_origin(0, 3500000, 1000, 1000)),  # its axes point west and south
    ],
)
@pytest.mark.parametrize("kind", ["target", "patches"])
def test_places_lie_in_the_polygon_of_their_class(system, place, kind):
    chance = np.random.default_rng(0)
    labels = TARGET if kind == "target" else chance.integers(0, 3, (SIDE, SIDE)).astype(np.uint8)

    def to_degrees(points):
        return np.array(transform(system, "OGC:CRS84", *points.T)).T

    cells = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2)
    columns, rows = (cells + chance.uniform(0.1, 0.9, cells.shape)).T
    a, b, c, d, e, f = place[:6]
    ground = to_degrees(np.stack([a * columns + b * rows + c, d * columns + e * rows + f], 1))
    ground[:, 0] = (ground[:, 0] + 180) % 360 - 180
    found = np.zeros((3, len(cells)), int)
    for polygon, value in shapes(labels, transform=place):
        shape = in_degrees(polygon["coordinates"], to_degrees)
        parts = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
        for outer, *holes in parts:
            assert signed_area(outer) > 0
            assert all(signed_area(hole) < 0 for hole in holes)
            assert (np.abs(outer) <= (180, 90)).all()
            found[int(value)] += Outline(outer).contains_points(ground)
            for hole in holes:
                found[int(value)] -= Outline(hole).contains_points(ground)
    np.testing.assert_array_equal(found, np.arange(3)[:, None] == labels.reshape(-1))
