"""Which names of labels go with which names of images: endings such as ``_image`` and ``_label``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePath

LABEL_FOLDERS = frozenset(
    {
        "label",
        "labels",
        "mask",
        "masks",
        "annotation",
        "annotations",
        "gt",
        "gtfine",
        "groundtruth",
        "ground_truth",
    }
    | {"segmentation", "segmentations", "segmentationclass", "segmentationmask", "segmentationobject"}
)
"""Names of folders, in lower case, that usually hold labels."""

_LABEL_WORDS = (
    r"(labels?|masks?|gt|seg|segmentation|annotations?|groundtruth|trimap|labelids|labeltrainids|color|l)"
)
_MOST = 12  # endings of either kind that are tried
_SAMPLE = 2000  # names that they are found on


def likely_endings(images: Collection[str], labels: Collection[str]) -> list[tuple[str, str]]:
    """Return the pairs of endings (of images, of labels) without which most names agree, the best first.

    Only pairs that bring as many images to a label as the best one, and at least half of the images or labels.
    """
    images, labels = sorted(images)[:_SAMPLE], sorted(labels)[:_SAMPLE]
    scored: list[tuple[int, int, tuple[str, str]]] = []
    for ending in _endings(images):
        stems = {name.removesuffix(ending) for name in images if name.endswith(ending)}
        for other in _endings(labels):
            count = len(stems & {name.removesuffix(other) for name in labels if name.endswith(other)})
            scored.append((count, -len(ending) - len(other), (ending, other)))
    best = max((count for count, *_ in scored), default=0)
    if 2 * best < min(len(images), len(labels)) and best < 0.5 * len(images):
        return []
    pairs = [(length, pair) for count, length, pair in scored if count == best and best]
    shortest: dict[str, tuple[int, tuple[str, str]]] = {}
    for length, pair in sorted(pairs, reverse=True):
        shortest.setdefault(pair[1], (length, pair))
    shown = [pair for _, pair in shortest.values()]
    return [pair for pair in shown if not any(_is_longer(pair, other) for other in shown)]


def folders_of_labels(keys: Sequence[str]) -> dict[str, int]:
    """Return folders below a root that hold labels by their name and their files' names, with the number of files.

    ``keys`` are paths of all images below the root. A folder counts where most of its files are called like images
    outside of it, but for an ending.
    """
    inside: dict[str, set[str]] = {}
    outside: set[str] = set()
    for key in keys:
        parts = key.split("/")
        place = next((i for i, part in enumerate(parts[:-1]) if part.lower() in LABEL_FOLDERS), None)
        if place is None:
            outside.add(PurePath(key).stem)
        else:
            inside.setdefault("/".join(parts[: place + 1]), set()).add(PurePath(key).stem)
    return {
        folder: len(names)
        for folder, names in inside.items()
        if len(names & outside) * 2 >= len(names) or likely_endings(outside, names)
    }


def look_like_labels(keys: Iterable[str]) -> tuple[str, str] | None:
    """Return an image and what looks like its label among images of one folder, None where there is no such pair."""
    by_stem: dict[str, str] = {}
    keys = list(keys)
    for key in keys:
        stem = key.removesuffix(PurePath(key).suffix)
        if stem in by_stem:
            return by_stem[stem], key
        by_stem[stem] = key
    for stem, key in by_stem.items():
        if match := re.fullmatch(rf"(.+)[_\-. ]{_LABEL_WORDS}", stem, re.IGNORECASE):
            for image in ("", "_image", "_img", "_rgb", "_leftImg8bit", "-image", "-img", "_photo", "_sat"):
                if (other := by_stem.get(match[1] + image)) is not None and other != key:
                    return other, key
    return None


def _endings(names: Sequence[str]) -> list[str]:
    """Return endings that begin at a mark, or at the change from digits to letters, and that several names have."""
    counts: Counter[str] = Counter()
    for name in names:
        last = name.rpartition("/")[2]
        counts.update(
            {last[match.start() :] for match in re.finditer(r"(?<=.)[_\-. ]|(?<=\d)(?=[^\W\d_])", last)}
        )
    least = min(2, len(names))
    return ["", *(ending for ending, count in counts.most_common(_MOST) if count >= least)]


def _is_longer(pair: tuple[str, str], other: tuple[str, str]) -> bool:
    """Tell whether both endings of a pair are those of another with a common part in front."""
    return pair != other and all(
        ending.endswith(shorter) for ending, shorter in zip(pair, other, strict=True)
    )
