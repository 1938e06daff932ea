"""How the stored values of a collection's images become 8-bit colours: which bands, and which range."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.stretch import parse_stretch

Image = TypeVar("Image")
Window = tuple[int, int, int, int]
"""A part of an image in whole pixels: top, left, height, width."""

_IMAGES, _PIXELS = 64, 10_000  # that percentiles are taken from: evenly chosen images, and pixels of each


@dataclass(frozen=True)
class Reading:
    """Bands and range, the same for every image.

    Attributes:
        bands: shown as red, green and blue, counted from 1; one is gray; none: the first three, or the only one.
        low: value that becomes 0; None leaves the range to the type of the values.
        high: value that becomes 255.
        page: of the file, counted from 1; 0 is the file as a whole, of which the first page is read.
        window: the part of the image that is read; None is all of it.
    """

    bands: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None
    page: int = 0
    window: Window | None = None

    @property
    def is_plain(self) -> bool:
        """Whether values are read by the rules for all images, of whatever part of the file."""
        return replace(self, page=0, window=None) == Reading()

    @property
    def is_part(self) -> bool:
        """Whether a page or a window of the file is read."""
        return bool(self.page) or self.window is not None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, empty where nothing was asked for."""
        return {} if self.is_plain else {"bands": list(self.bands), "low": self.low, "high": self.high}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Reading:
        """Read what `to_json` wrote."""
        return cls(tuple(values["bands"]), values["low"], values["high"]) if values else cls()

    def choose(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the bands (H, W, 1 or 3) of values (H, W, S); raises ValueError for a band that is not there."""
        there = values.shape[2]
        bands = self.bands or ((1, 2, 3) if there >= 3 else (1,))
        if max(bands) > there:
            raise ValueError(f"it has no band {max(bands)}: there are {there}")
        return values[..., [band - 1 for band in bands]]

    def stretch(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Bring values to 8 bits by the range: what lies outside becomes 0 or 255, NaN becomes 0."""
        assert self.low is not None
        assert self.high is not None
        numbers = (values.astype(np.float64) - self.low) * (255 / (self.high - self.low))
        return np.round(np.clip(np.nan_to_num(numbers, nan=0.0, posinf=255.0, neginf=0.0), 0, 255)).astype(
            np.uint8
        )


def settle_reading(
    images: Sequence[Image],
    bands: Sequence[int],
    stretch: str | None,
    read: Callable[[Image], NDArray[np.generic]],
) -> Reading:
    """Return the reading of a collection; percentiles become values, over all chosen bands of evenly chosen images.

    Args:
        images: all of them.
        bands: see `Reading`.
        stretch: see `parse_stretch`; None and ``none`` leave the range to the type of the values.
        read: gives the stored values (H, W, S) of an image; NaN does not count.

    Raises:
        UnsupsegError: no image can be read, or all values are equal.
    """
    chosen = Reading(tuple(bands))
    if stretch in (None, "none"):
        return chosen
    assert stretch is not None
    low, high, percent = parse_stretch(stretch)
    if not percent:
        return Reading(tuple(bands), low, high)
    samples, reason = [], ""
    count = min(len(images), _IMAGES)
    for image in (images[i * len(images) // count] for i in range(count)):
        try:
            values = chosen.choose(read(image)).reshape(-1).astype(np.float64)
        except (UnsupsegError, ValueError) as error:
            reason = str(error)
            continue
        samples.append(values[:: max(1, len(values) // _PIXELS)])
    if not samples:
        raise UnsupsegError(f"No image can be read to find the range of --stretch; the last reason: {reason}")
    found = np.concatenate(samples)
    if not np.isfinite(found).any():
        raise UnsupsegError(
            "The images looked at hold no value that is a number: there is no range to stretch."
        )
    bottom, top = (float(f"{value:.6g}") for value in np.percentile(found[np.isfinite(found)], (low, high)))
    if not bottom < top:
        raise UnsupsegError(
            f"--stretch {stretch}: the values of these images are all {bottom:g}; leave it out."
        )
    return Reading(tuple(bands), bottom, top)
