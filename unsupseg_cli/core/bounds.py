"""Bounds of what a file may describe: what lies beyond any use is damage or malice, and would only fill the memory."""

from __future__ import annotations

import math
from typing import Any

LONGEST_SIDE = 8192
"""Pixels of a view's side, of the shorter one where the other follows."""
MOST_CLASSES = 4096
"""Classes of a label space: a matrix of that many squared is 134 MB."""
LARGEST_CLASS = 32_767
"""Id of a class: those of 16-bit label maps with a sign, which this program computes with."""
LARGEST_LABEL = 65_535
"""Raw value of a label: those of 16-bit images."""
_MOST = 65_536  # of any other whole number in a description, such as channels
_DEEPEST = 256
_DEPTHS = ("depth", "layers", "blocks")


def require_bounded(description: Any, name: str = "") -> None:
    """Raise ValueError where a number of a description (of a head, a network, an architecture) is out of all bounds."""
    if isinstance(description, dict):
        for key, value in description.items():
            require_bounded(value, str(key))
    elif isinstance(description, list | tuple):
        for value in description:
            require_bounded(value, name)
    elif isinstance(description, int | float):
        most = _DEEPEST if any(word in name for word in _DEPTHS) else _MOST
        if not math.isfinite(description) or abs(description) > most:
            raise ValueError(f"'{name}' is {description}, expected at most {most:,}")
