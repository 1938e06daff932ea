"""The range of values that is shown, as people write it."""

from __future__ import annotations


def parse_stretch(text: str) -> tuple[float, float, bool]:
    """Return two numbers, and whether they are percentiles.

    ``2,98`` and ``2%,98%`` are percentiles; numbers below 0 or above 100 are values, and two of which none is above 1.

    Raises:
        ValueError: the text is of neither form.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        low, high = (float(part.removesuffix("%")) for part in parts)
    except ValueError:
        raise ValueError(
            "expected two percentiles such as 2,98, two values such as 0,3000, none or image"
        ) from None
    if not low < high:
        raise ValueError(f"{low:g} is not below {high:g}")
    marked = all(part.endswith("%") for part in parts)
    percent = marked or (low >= 0 and 1 < high <= 100)
    if marked and not (low >= 0 and high <= 100):
        raise ValueError("percentiles lie between 0 and 100")
    return low, high, percent
