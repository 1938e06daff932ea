"""Which values of a collection become black and white: found once, over images spread evenly over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Reporter, Silent
from unsupseg_cli.core.stretch import parse_stretch
from unsupseg_cli.data.images import read_known_values, type_of_values
from unsupseg_cli.data.items import Item, spread
from unsupseg_cli.data.reading import PLAIN, Reading, usual_ranges

_IMAGES, _PIXELS = 64, 10_000  # that a range is found from: images, and pixels of each
_LOOKED_AT = 8  # images that are decoded to see whether a range fits them
_USUAL = 25  # % of a usual range that values reach at least, else their own range is taken
_FEW_SHADES = 16  # of 256: less tells hardly anything apart
_PERCENTILES = (2.0, 98.0)
_OUTSIDE = 25  # % of the values outside a range: more are told
_EIGHT_BITS = frozenset({".jpg", ".jpeg", ".webp", ".bmp", ".mat"})


def settle_reading(
    items: Sequence[Item],
    reading: Reading = PLAIN,
    stretch: str | None = None,
    own: bool = True,
    reporter: Reporter | None = None,
) -> tuple[Reading, list[str]]:
    """Return how the images of a collection are read, with its ranges, and what the user is told of them.

    With ``stretch`` one range holds for values of every type. Without, each type of more than 8 bits has the range
    that ``reading`` names, or else the one that its values fill in this collection: a usual one (65,535, or 1 of
    floats, is white) where they reach a quarter of it, else from the 2nd to the 98th percentile.

    Args:
        items: all images.
        reading: bands; ranges that are settled already.
        stretch: see `parse_stretch`.
        own: whether ``reading`` was made for these images.
        reporter: is told the progress.

    Raises:
        UsageError: an image does not have the bands.
        UnsupsegError: no image can be read, or all values are equal.
    """
    _require_bands(items, reading)
    if stretch in ("image", "none"):
        return replace(reading, rule="image" if stretch == "image" else "none"), []
    if stretch is not None:
        reading = _stretched(items, reading, stretch)
        remark = f"stretch: {reading.low:g} becomes black, {reading.high:g} white"
        by_type = _by_type(items, reporter or Silent())
        lost = [said for name, files in by_type.items() for said in _lost(files, reading, name)]
        return reading, [remark, *_misfit(items, reading, "all"), *lost]
    said: list[str] = []
    for name, files in _by_type(items, reporter or Silent()).items():
        known = reading.range_of(name)
        if known is not None and not own:
            said += _misfit(files, reading, name)
        elif known is None and reading.rule == "collection":
            values, _, broken = _sample(files, reading)
            low, high, usual = _range_of(values, name)
            reading = replace(reading, ranges=(*reading.ranges, (name, low, high)))
            how = "" if usual else ", the 2nd and 98th percentile of them (`extract --stretch` takes others)"
            if values.size or broken:  # else no image of this type can be read
                said.append(f"{name} values: {low:g} becomes black and {high:g} white in all images{how}")
            said += _broken(broken, name)
    return reading, said


def _require_bands(items: Sequence[Item], reading: Reading) -> None:
    """Raise UsageError where one of a few images does not have the bands."""
    for item in spread(items, _LOOKED_AT) if reading.bands else []:
        try:
            reading.choose(read_known_values(item.image)[0])
        except ValueError as error:
            bands = ",".join(map(str, reading.bands))
            raise UsageError(f"--bands {bands} does not fit the image '{item.image}': {error}.") from None
        except UnsupsegError:  # said where the image is read
            continue


def _by_type(items: Sequence[Item], reporter: Reporter) -> Mapping[str, Sequence[Item]]:
    """Return the images whose values have more than 8 bits, by the type of these; a sample of JPEG and the like."""
    by_type: dict[str, list[Item]] = {}
    likely = [item for item in items if item.image.suffix.lower() not in _EIGHT_BITS]
    unlikely = spread([item for item in items if item.image.suffix.lower() in _EIGHT_BITS], _IMAGES)
    looked_at = (*likely, *unlikely)
    for item in reporter.track(looked_at, "types of images", total=len(looked_at)):
        name = type_of_values(item.image)
        if name not in ("uint8", "bool"):
            by_type.setdefault(name, []).append(item)
    return dict(sorted(by_type.items()))


def _sample(
    items: Sequence[Item], reading: Reading, most: int = _IMAGES
) -> tuple[NDArray[np.float64], str, float]:
    """Return finite values of the chosen bands of some images, why the last unread one is that, and how many are not.

    The last is the share of values that are NaN or infinite.
    """
    samples, reason = [np.empty(0)], ""
    for item in spread(items, most):
        try:
            values, known = read_known_values(item.image, item.reading.page if item.reading else 0)
            numbers = reading.choose(values)[known].reshape(-1).astype(np.float64)
        except (UnsupsegError, ValueError) as error:
            reason = f"'{item.image}': {error}"
            continue
        samples.append(numbers[:: max(1, len(numbers) // _PIXELS)])
    sample = np.concatenate(samples)
    finite = np.isfinite(sample)
    return sample[finite], reason, 1 - float(finite.mean()) if sample.size else 0.0


def _stretched(items: Sequence[Item], reading: Reading, stretch: str) -> Reading:
    """Return the reading with one range for all types: the values, or what the percentiles are."""
    low, high, percent = parse_stretch(stretch)
    if not percent:
        return replace(reading, low=low, high=high)
    values, reason, _ = _sample(items, reading)
    if not values.size:
        raise UnsupsegError(f"No image can be read to find the range of --stretch; the last reason: {reason}")
    low, high = (_rounded(value) for value in np.percentile(values, (low, high)))
    if not low < high:
        raise UnsupsegError(f"--stretch {stretch}: the values of these images are all {low:g}; leave it out.")
    return replace(reading, low=low, high=high)


def _range_of(values: NDArray[np.float64], name: str) -> tuple[float, float, bool]:
    """Return the values of a type that become black and white, and whether that is a usual range."""
    if not values.size:
        return 0.0, float(usual_ranges(name)[0]), True
    least, most = values.min(), values.max()
    low, high = (_rounded(value) for value in np.percentile(values, _PERCENTILES))
    fitting = [top for top in usual_ranges(name) if least >= 0 and most <= top]
    for top in fitting:
        if high >= top * _USUAL / 100 or least == most:  # a single shade stays as it is
            return 0.0, float(top), True
    if not low < high:
        low, high = _rounded(least), _rounded(most)
    return (low, high, False) if low < high else (low, low + 1, False)


def _misfit(items: Sequence[Item], reading: Reading, name: str) -> list[str]:
    """Say so where much of some images lies outside the range that they are read by."""
    range_ = reading.range_of(name)
    values, _, _ = _sample(items, reading, _LOOKED_AT)
    if range_ is None or not values.size:
        return []
    low, high = range_
    share = 100 * float(((values < low) | (values > high)).mean())
    if share <= _OUTSIDE:
        return []
    return [f"{share:.0f} % of the values lie outside {low:g} to {high:g}, and become black or white"]


def _broken(share: float, name: str) -> list[str]:
    """Say how much of a type's values are no numbers."""
    if not share:
        return []
    of_type = f"{100 * share:.2g} % of the {name} values"
    return [f"{of_type} are NaN or infinite: NaN and -inf become black, inf white"]


def _lost(items: Sequence[Item], reading: Reading, name: str) -> list[str]:
    """Say which values of a type are no numbers, and whether all of them become nearly one shade of a common range."""
    values, _, broken = _sample(items, reading)
    said, range_ = _broken(broken, name), reading.range_of(name)
    if range_ is None or not values.size:
        return said
    least, most = (float(value) for value in np.percentile(values, _PERCENTILES))
    shades = 255 * (most - least) / (range_[1] - range_[0])
    if least < most and shades < _FEW_SHADES:
        said.append(
            f"the {name} values ({least:g} to {most:g}) become {max(1, round(shades))} of 256 shades by --stretch: "
            "without it each type has a range of its own"
        )
    return said


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
