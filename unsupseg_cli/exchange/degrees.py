"""Polygons in longitude and latitude, cut at the antimeridian; round a pole they are closed along the map's edge.

Source of the rules: RFC 7946, sections 3.1.6 (winding) and 3.1.9 (antimeridian). The package `antimeridian` takes no
longitudes beyond 180 degrees, and loses polygons that touch that line or go round a pole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.exchange.ground import signed_area

Point = tuple[float, float]
Ring = list[Point]
"""Closed: the first point is the last one too. The inside is on the left."""
ToDegrees = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps points (N, 2) of a coordinate system to longitude and latitude."""

_DIGITS = 8  # of a degree: a millimetre
_WIDE = 10.0  # degrees of longitude beyond which an edge is looked at in between: it may go either way round
_STEPS = 36  # in such an edge
_CORNERS = {180.0: (180.0, 90.0), 181.0: (-180.0, 90.0), 361.0: (-180.0, -90.0), 362.0: (180.0, -90.0)}
"""Of the map, by their place on its edge (`_place`)."""


def in_degrees(polygon: Sequence[Sequence[Point]], to_degrees: ToDegrees) -> dict[str, Any]:
    """Return a polygon, its outer ring first, as a GeoJSON geometry within 180 degrees of longitude either way."""
    rings = [_unwrapped(ring, to_degrees) for ring in _wound(polygon)]
    if _turns(rings[0]) == 0 and signed_area(rings[0]) < 0:  # a system whose axes mirror the ground
        rings = [ring[::-1] for ring in rings]
    if all(abs(longitude) <= 180 for ring in rings for longitude, _ in ring):
        return {"type": "Polygon", "coordinates": rings}
    whole: list[Ring] = []
    chains: list[Ring] = []
    for ring in rings:
        parts, is_cut = _cut(ring)
        (chains if is_cut else whole).extend(parts)
    linked = _linked(chains, around_south=sum(map(_turns, rings)) < 0)
    polygons = _with_holes([*linked, *whole])
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def _wound(polygon: Sequence[Sequence[Point]]) -> list[Ring]:
    """Return the outer ring counter-clockwise and the holes clockwise."""
    return [
        list(ring) if (signed_area(list(ring)) > 0) == (number == 0) else list(ring)[::-1]
        for number, ring in enumerate(polygon)
    ]


def _turns(ring: Ring) -> int:
    """Return how often a ring goes round the earth, eastward: 1 or -1 where it encloses a pole."""
    return round((ring[-1][0] - ring[0][0]) / 360)


def _unwrapped(ring: Ring, to_degrees: ToDegrees) -> Ring:
    """Return a ring in degrees without jumps of longitude, which therefore goes beyond 180."""
    corners = np.array(ring, np.float64)
    degrees = np.round(to_degrees(corners), _DIGITS)
    steps = np.where(np.abs(np.diff(degrees[:, 0])) > _WIDE, _STEPS, 1)
    if steps.max() > 1:
        edge = np.repeat(np.arange(len(steps)), steps)
        share = np.concatenate([np.arange(count) / count for count in steps])
        between = corners[edge] + share[:, None] * (corners[edge + 1] - corners[edge])
        degrees = to_degrees(np.concatenate([between, corners[-1:]]))
        degrees[:, 0] = np.unwrap(degrees[:, 0], period=360)
        is_corner = np.append(share == 0, True)
        is_wide = np.abs(np.diff(degrees[is_corner, 0])) > _WIDE
        degrees = np.round(degrees[is_corner | np.append(is_wide[edge], True)], _DIGITS)
    return [(longitude, latitude) for longitude, latitude in degrees.tolist()]


def _cut(ring: Ring) -> tuple[list[Ring], bool]:
    """Return the parts of a ring between antimeridians, each moved to within 180 degrees, and whether it was cut.

    A corner on an antimeridian counts as east of it.
    """
    worlds = [int((longitude + 180) // 360) for longitude, _ in ring]
    part = [(ring[0][0] - 360 * worlds[0], ring[0][1])]
    parts = []
    for (start, here), (stop, there) in pairwise(zip(ring, worlds, strict=True)):
        if here != there:
            side = 180.0 if there > here else -180.0
            share = (360 * here + side - start[0]) / (stop[0] - start[0])
            latitude = round(start[1] + share * (stop[1] - start[1]), _DIGITS)
            parts.append([*part, (side, latitude)])
            part = [(-side, latitude)]
        part.append((round(stop[0] - 360 * there, _DIGITS), stop[1]))
    return ([part + parts[0][1:], *parts[1:]], True) if parts else ([part], False)


def _linked(chains: list[Ring], around_south: bool) -> list[Ring]:
    """Return closed rings of chains that begin and end on the map's edge, along which they are linked.

    Counter-clockwise along the edge from its lower right corner, the ends and beginnings of chains take turns, ends
    first but where that corner is inside.
    """
    ends = sorted(range(len(chains)), key=lambda number: _place(chains[number][-1]))
    begins = sorted(range(len(chains)), key=lambda number: _place(chains[number][0]))
    following = dict(zip(ends, begins[around_south:] + begins[:around_south], strict=True))
    rings = []
    while following:
        ring: Ring = []
        number = first = next(iter(following))
        while number in following:
            after = following.pop(number)
            ring += chains[number] + _corners_between(_place(chains[number][-1]), _place(chains[after][0]))
            number = after
        ring.append(chains[first][0])
        rings.append([ring[0], *(point for before, point in pairwise(ring) if point != before)])
    return [ring for ring in rings if signed_area(ring) > 0]  # else it only touches the edge


def _place(point: Point) -> float:
    """Return where on the map's edge a point lies, counter-clockwise from the lower right corner."""
    longitude, latitude = point
    return 90 + latitude if longitude > 0 else 271 - latitude


def _corners_between(start: float, stop: float) -> Ring:
    if start <= stop:
        return [corner for place, corner in _CORNERS.items() if start < place < stop]
    return _corners_between(start, 363) + _corners_between(-1, stop)


def _with_holes(rings: list[Ring]) -> list[list[Ring]]:
    """Return polygons of wound rings: each clockwise one is a hole of the one round it."""
    polygons = [[ring] for ring in rings if signed_area(ring) > 0]
    for hole in (ring for ring in rings if signed_area(ring) < 0):
        (x0, y0), (x1, y1) = hole[:2]  # a corner may touch the outer ring
        middle = (x0 + x1) / 2, (y0 + y1) / 2
        for polygon in polygons:
            if len(polygons) == 1 or _is_inside(middle, polygon[0]):
                polygon.append(hole)
                break
    return polygons


def _is_inside(point: Point, ring: Ring) -> bool:
    x, y = point
    return bool(
        sum(
            (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0)
            for (x0, y0), (x1, y1) in pairwise(ring)
        )
        % 2
    )
