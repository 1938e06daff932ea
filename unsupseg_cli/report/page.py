"""A report as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from unsupseg_cli.core.names import visible

GENERATOR = "unsupseg report"
"""What a page says of itself, so that a file that is none is not written over."""

MOST_VIEWS = 10
"""Views of one image that the page can switch between."""

_POINTS = 240  # of a curve, at most
_WIDTH, _HEIGHT, _EDGE = 300.0, 110.0, 6.0  # of a curve's drawing


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, its size in pixels, and what it shows, in words."""

    source: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Slides:
    """One image in several views, by what each shows; ``first`` is the number of the one that is shown first."""

    name: str
    views: Sequence[tuple[str, Picture]]
    first: int = 0


@dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of a row is its heading. ``colors`` (RGB) mark rows, ``note`` stands below."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    colors: Sequence[tuple[int, int, int] | None] = ()


@dataclass(frozen=True)
class Confusion:
    """Shares in [0, 1] by [true, predicted]; a row of a class without pixels is None."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    shares: Sequence[Sequence[float] | None]
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """A figure over the steps of a training as a line in a drawing, with what it means."""

    name: str
    explained: str
    line: str
    first: str
    last: str
    low: str
    high: str
    steps: str


@dataclass(frozen=True)
class Step:
    """An artifact of the lineage.

    ``changed`` are the settings that differ from their defaults (name, value, default), ``others`` the rest. One that
    is ``gone`` is known by its id alone.
    """

    id: str
    kind: str
    stage: str = ""
    gone: str = ""
    facts: Sequence[tuple[str, str]] = ()
    inputs: Sequence[tuple[str, str]] = ()
    changed: Sequence[tuple[str, str, str]] = ()
    others: Sequence[tuple[str, str]] = ()
    summary: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    used_labels: bool = False
    curves: Sequence[Curve] = ()
    pictures: Sequence[Picture] = ()


@dataclass
class Page:
    """Everything that a report shows; ``notes`` say what it lacks, and why."""

    title: str
    about: str
    used_labels: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)
    scores: list[Table] = field(default_factory=list)
    per_class: list[Table] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    slides: list[tuple[str, str, list[Slides]]] = field(default_factory=list)
    legends: list[tuple[str, Sequence[tuple[str, tuple[int, int, int]]]]] = field(default_factory=list)
    classes: list[Picture] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    resources: Table | None = None


def render(page: Page) -> str:
    """Return the page as HTML; every text in it is escaped."""
    return _template().render(page=page, generator=GENERATOR, most_views=MOST_VIEWS)


def curves(
    records: Sequence[Mapping[str, Any]], explained: Mapping[str, str], x: str = "step"
) -> list[Curve]:
    """Return a curve for each number that the records hold, over ``x``, of at most 240 points.

    Args:
        records: such as ``{"step": 10, "loss": 0.3}``; they may lack a number.
        explained: what a number is, and what is good.
        x: key of the horizontal axis; without it records are counted.
    """
    names = dict.fromkeys(name for record in records for name in record if name != x)
    drawn = []
    for name in names:
        points = [
            (float(record.get(x, index)), float(record[name]))
            for index, record in enumerate(records)
            if isinstance(record.get(name), int | float) and math.isfinite(record[name])
        ]
        if len(points) > 1:
            drawn.append(_curve(name, points, explained.get(name, "not explained by its method")))
    return drawn


def _curve(name: str, points: list[tuple[float, float]], explained: str) -> Curve:
    shown = points[:: -(-len(points) // _POINTS)]
    shown = shown if shown[-1] == points[-1] else [*shown, points[-1]]
    left, right = points[0][0], points[-1][0]
    low, high = min(value for _, value in points), max(value for _, value in points)
    across, up = (_WIDTH - 2 * _EDGE) / (right - left or 1.0), (_HEIGHT - 2 * _EDGE) / (high - low or 1.0)
    line = " ".join(
        f"{_EDGE + (x - left) * across:.1f},{_HEIGHT - _EDGE - (y - low) * up:.1f}" for x, y in shown
    )
    return Curve(
        name=name.replace("_", " "),
        explained=explained,
        line=line,
        first=f"{points[0][1]:.4g}",
        last=f"{points[-1][1]:.4g}",
        low=f"{low:.4g}",
        high=f"{high:.4g}",
        steps=f"{left:g} to {right:g}",
    )


def _shade(share: float) -> int:
    """Return the shade, 0 to 10, of a share in [0, 1]."""
    return max(0, min(10, round(10 * share)))


def _color(rgb: Sequence[int]) -> str:
    return "#" + "".join(f"{int(value):02x}" for value in rgb)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("unsupseg_cli.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: (
            visible(value) if type(value) is str else value
        ),  # what is markup already stays
    )
    environment.filters |= {"shade": _shade, "color": _color}
    return environment.get_template("page.html.jinja")
