"""Images and labels as files: which label belongs to which image.

Label files are only listed here, never opened.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.label_names import likely_endings
from unsupseg_cli.data.reading import Reading
from unsupseg_cli.data.scan import scan_images


@dataclass(frozen=True)
class Item:
    """One image: ``key`` is its path below the image root, with forward slashes; ``reading`` says how it is read."""

    key: str
    image: Path
    label: Path | None = None
    reading: Reading | None = None


class NoMatchError(UsageError):
    """No label has the name of an image."""


def match_labels(
    root: Path, images: Iterable[Path], labels: Path | None, *, image_suffix: str = "", label_suffix: str = ""
) -> list[Item]:
    """Pair images with labels of the same relative name without suffix; sort order plays no role.

    Args:
        root: folder of the images.
        images: their files.
        labels: folder of the labels.
        image_suffix: ending of images' names, before the dot, that does not count.
        label_suffix: ending of labels' names likewise; other files in the folder are no labels.

    Raises:
        UsageError: the label folder is missing or matches nothing, or two files have the same name.
    """
    pairs = [(relative_key(root, path), path) for path in images]
    if labels is None:
        return _distinct(Item(key, path) for key, path in sorted(pairs))
    if not labels.is_dir():
        problem = "is a file" if labels.exists() else "does not exist"
        raise UsageError(f"The label folder '{labels}' {problem}.")
    label_by_stem = _by_stem(labels, scan_images(labels, (), label_suffix), label_suffix)
    _by_stem(root, (path for _, path in pairs), image_suffix)
    items = _distinct(
        Item(key, path, label_by_stem.get(_stem(key).removesuffix(image_suffix)))
        for key, path in sorted(pairs)
    )
    if not any(item.label for item in items):
        raise NoMatchError(
            f"No label in '{labels}' has the relative name of an image: the first image is '{items[0].key}', the "
            f"first label '{next(iter(label_by_stem), 'none')}'.{_proposal(items, label_by_stem)}"
        )
    return items


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many of the images, evenly chosen."""
    count = min(len(items), most)
    return [items[number * len(items) // count] for number in range(count)]


def _distinct(items: Iterable[Item]) -> list[Item]:
    """Return sorted items; raises UsageError where two have one key."""
    listed = list(items)
    for item, other in pairwise(listed):
        if item.key == other.key:
            raise UsageError(
                f"'{item.image}' and '{other.image}' have the same name '{item.key}' once accents are composed "
                "(Unicode NFC); rename one of them."
            )
    return listed


def _proposal(items: Sequence[Item], labels: Mapping[str, Path]) -> str:
    """Return which options would bring images and labels together, empty where none would."""
    pairs = likely_endings([_stem(item.key) for item in items], labels)
    if not pairs or pairs[0] == ("", ""):
        return ""
    ways = [
        " ".join(
            f"--{name} {ending}"
            for name, ending in zip(("image-suffix", "label-suffix"), pair, strict=True)
            if ending
        )
        for pair in pairs
    ]
    return f" They agree with {'; or with '.join(ways)}."


class ItemIndex:
    """Finds the image that a name in somebody else's file means.

    It is the image of this relative path, else the only one of this file name. Without ``suffix`` only what stands
    before the suffix counts, as for labels.
    """

    def __init__(self, items: Sequence[Item], *, suffix: bool = True) -> None:
        self._items, self._suffix = items, suffix
        self._by_path: dict[str, list[int]] = {}
        self._by_name: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            path = self._compared(item.key)
            self._by_path.setdefault(path, []).append(index)
            self._by_name.setdefault(path.rpartition("/")[2], []).append(index)

    def find(self, name: str) -> int | None:
        """Return the number of the image, None where there is none.

        Raises:
            ValueError: it may be one of several; the message names two.
        """
        path = self._compared(unicodedata.normalize("NFC", name.replace("\\", "/")))
        matches = self._by_path.get(path) or self._by_name.get(path.rpartition("/")[2], [])
        if len(matches) > 1:
            below = [index for index in matches if _is_end(path, self._compared(self._items[index].key))]
            matches = below if len(below) == 1 else matches
        if len(matches) > 1:
            first, second = (self._items[index].key for index in matches[:2])
            raise ValueError(f"'{name}' may be '{first}' or '{second}'")
        return matches[0] if matches else None

    def _compared(self, path: str) -> str:
        return path if self._suffix else _stem(path)


def _is_end(path: str, other: str) -> bool:
    """Tell whether one of two paths ends in the other."""
    return f"/{path}".endswith(f"/{other}") or f"/{other}".endswith(f"/{path}")


def relative_key(root: Path, path: Path) -> str:
    """Return a path below a root with forward slashes, in composed Unicode."""
    return as_key(path.relative_to(root).as_posix())


def as_key(name: str) -> str:
    """Return a file's name in composed Unicode; bytes that are no UTF-8 become escapes, so that any text holds it."""
    readable = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", readable)


def _stem(key: str) -> str:
    return key[: -len(Path(key).suffix)]


def _by_stem(root: Path, paths: Iterable[Path], suffix: str = "") -> dict[str, Path]:
    path_by_stem: dict[str, Path] = {}
    for path in paths:
        stem = _stem(relative_key(root, path)).removesuffix(suffix)
        if stem in path_by_stem:
            raise UsageError(
                f"'{path_by_stem[stem]}' and '{path}' have the same relative name '{stem}', so that labels cannot be "
                "matched; rename or remove one."
            )
        path_by_stem[stem] = path
    return path_by_stem
