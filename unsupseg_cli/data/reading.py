"""How the stored values of a collection's images become 8-bit colours: which bands, and which range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Rule = Literal["collection", "image", "none"]
"""What decides the range of values of more than 8 bits: all images of the collection, each image, or their type."""
Window = tuple[int, int, int, int]
"""A part of an image in whole pixels: top, left, height, width."""


@dataclass(frozen=True)
class Reading:
    """Bands and range, the same for every image.

    Attributes:
        bands: shown as red, green and blue, counted from 1; one is gray; none: the first three, or the only one.
        low: value that becomes 0, of whatever type; None leaves the range to the type of the values.
        high: value that becomes 255.
        page: of the file, counted from 1; 0 is the file as a whole, of which the first page is read.
        ranges: (type, value that becomes 0, value that becomes 255) of types of more than 8 bits, by numpy's names.
        rule: what decides the range of a type that has none in ``ranges``.
        window: the part of the image that is read; None is all of it.
    """

    bands: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None
    page: int = 0
    window: Window | None = None
    ranges: tuple[tuple[str, float, float], ...] = ()
    rule: Rule = "collection"

    @property
    def is_plain(self) -> bool:
        """Whether nothing was asked for or found, of whatever part of the file."""
        return replace(self, page=0, window=None) == Reading()

    @property
    def is_part(self) -> bool:
        """Whether a page or a window of the file is read."""
        return bool(self.page) or self.window is not None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, empty where nothing was asked for or found."""
        if self.is_plain:
            return {}
        values: dict[str, Any] = {"bands": list(self.bands), "low": self.low, "high": self.high}
        if self.ranges:
            values["ranges"] = [list(entry) for entry in self.ranges]
        return values if self.rule == "collection" else values | {"rule": self.rule}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Reading:
        """Read what `to_json` wrote."""
        if not values:
            return cls()
        ranges = tuple((str(name), float(low), float(high)) for name, low, high in values.get("ranges", ()))
        rule = values.get("rule", "collection")
        return cls(tuple(values["bands"]), values["low"], values["high"], ranges=ranges, rule=rule)

    def choose(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the bands (H, W, 1 or 3) of values (H, W, S); raises ValueError for a band that is not there."""
        there = values.shape[2]
        bands = self.bands or ((1, 2, 3) if there >= 3 else (1,))
        if max(bands) > there:
            raise ValueError(f"it has no band {max(bands)}: there are {there}")
        return values[..., [band - 1 for band in bands]]

    def range_of(self, name: str) -> tuple[float, float] | None:
        """Return the values of a type that become 0 and 255; None where each image has a range of its own."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        if name in ("uint8", "bool"):
            return 0, 255 if name == "uint8" else 1
        if self.rule == "none":
            return 0, 1 if name.startswith("float") else float(np.iinfo(name).max)
        return next(((low, high) for known, low, high in self.ranges if known == name), None)

    def to_uint8(
        self, values: NDArray[np.generic], known: NDArray[np.bool_] | None = None
    ) -> NDArray[np.uint8]:
        """Bring values (H, W, S) to 8 bits: what lies outside the range becomes 0 or 255, NaN becomes 0.

        Only ``known`` pixels (H, W) count where an image has a range of its own.
        """
        if values.dtype == np.uint8 and self.low is None:
            return values.astype(np.uint8)
        numbers = values.astype(np.float64)
        low, high = self.range_of(values.dtype.name) or image_range(
            numbers if known is None else numbers[known], values.dtype.name
        )
        scaled = (numbers - low) * (255 / (high - low))
        whole = np.clip(np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0), 0, 255)
        return np.round(whole).astype(np.uint8)


PLAIN = Reading()


def usual_ranges(name: str) -> tuple[int, ...]:
    """Return the largest values that images of a type usually have: what is white, 0 being black."""
    if name == "uint16":
        return (65535,)
    return (1, 255, 65535) if name.startswith("float") else (255, 65535)


def image_range(numbers: NDArray[np.float64], name: str) -> tuple[float, float]:
    """Return the narrowest usual range that holds all values of an image, else their smallest and largest."""
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    for top in usual_ranges(name):
        if low >= 0 and high <= top:
            return 0.0, float(top)
    return (low, high) if low < high else (low, low + 1)
