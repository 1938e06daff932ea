"""What label maps have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SHOWN = 8  # values named in a message

VOID = -1
"""Label of a pixel without a class, or without a mask."""

OBJECTS = "objects"
"""The matching of clusters that an evaluation of masks named, by labels of objects."""


def as_ranges(values: Iterable[int]) -> str:
    """Return sorted numbers as text, runs as ``0-10``."""
    runs: list[list[int]] = []
    for value in map(int, values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return shortened(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def moved_without_holes(ids: Sequence[int]) -> str:
    """Return as text which ids of classes are others where holes are not counted, ``3 is 2``; empty for none."""
    moved = [f"{number} is {index}" for index, number in enumerate(ids) if number != index]
    return shortened(moved) if moved else ""


def shortened(parts: Iterable[object]) -> str:
    """Return the first of some things as text, with dots where there are more."""
    texts = [str(part) for part in parts]
    return ", ".join(texts[:_SHOWN]) + (", ..." if len(texts) > _SHOWN else "") or "none"
