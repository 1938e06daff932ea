"""Masks in the COCO format: files of annotations, lists of results, polygons and run lengths.

Source of the format: cocodataset.org, "Data format" and "Results format"; pycocotools.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.words import counted
from unsupseg_cli.data.polygons import outlines

_OUTSIDE = 1.0  # pixels that a polygon may reach over the border: annotation tools round
_LEAST = 6  # numbers of a polygon: three points
_HALVES = re.compile("[\ud800-\udfff]")  # of characters beyond the first 65,536
_MOST = (
    1e15  # numbers beyond are damage; NaN and infinity, which Python's JSON knows, are not below it either
)


class MalformedMask(ValueError):  # noqa: N818 - says what it is, as the user reads it
    """A segmentation that describes no mask of its image; the message says why."""


@dataclass(frozen=True)
class CocoImage:
    """An image as a file names it; its size is 0 where the file does not tell."""

    name: str
    height: int = 0
    width: int = 0


@dataclass(frozen=True)
class CocoMask:
    """One annotation or result: ``place`` says where in its file it stands; ``category`` is None without one."""

    place: str
    image: int | str
    segmentation: Any
    category: int | None
    score: float
    crowd: bool


@dataclass(frozen=True)
class CocoFile:
    """The content of a file: images and names of categories by id, records in their order.

    ``problems`` are the records that say no mask of an image; they are in none of the other fields. ``remarks`` say
    what the file leaves open and how it was taken. ``used_labels`` says that `export-masks` wrote masks which were made
    with labels.
    """

    images: Mapping[int | str, CocoImage]
    records: list[CocoMask]
    categories: Mapping[int, str]
    problems: list[str]
    remarks: list[str] = field(default_factory=list)
    used_labels: bool = False


def read_coco(path: Path, images_of: Path | None = None) -> CocoFile:
    """Read a file of annotations (a JSON object) or of results (a JSON array).

    Args:
        path: of the file.
        images_of: a file of annotations whose images and categories the ids of results mean. Without one, the image
            ids of results are file names.

    Raises:
        UsageError: the file cannot be read, is no JSON, or holds something else.
    """
    content = _load(path)
    problems, remarks = list[str](), list[str]()
    if isinstance(content, dict):
        if images_of is not None:
            raise UsageError(f"'{path}' has images of its own; leave --images-file out.")
        images, categories = _images(content, path, problems), _categories(content, path, problems, remarks)
        entries = content.get("annotations")
        noun = "annotation"
    else:
        images, categories, entries, noun = {}, {}, content, "result"
        if images_of is not None:
            listing = _load(images_of)
            if not isinstance(listing, dict):
                raise UsageError(f"'{images_of}' lists no images; expected a COCO file of annotations.")
            images = _images(listing, images_of, problems)
            categories = _categories(listing, images_of, problems, remarks)
    if not isinstance(entries, list):
        raise UsageError(
            f"'{path}' is no COCO file: expected a JSON object with 'images' and 'annotations', or an array of results."
        )
    records, seen = [], dict[int, str]()
    for number, entry in enumerate(entries):
        try:
            record = _record(entry, number, noun)
        except MalformedMask as error:
            problems.append(str(error))
            continue
        if noun == "annotation" and (own := entry.get("id")) is not None:
            if own in seen:
                problems.append(f"{record.place}: its id {own} is that of {seen[own]}")
                continue
            seen[own] = f"annotation number {number}"
        if categories and record.category is not None and record.category not in categories:
            problems.append(f"{record.place}: its category {record.category} is not among the categories")
            continue
        records.append(record)
    known = sorted({record.category for record in records if record.category is not None})
    if known and not categories:
        remarks.append("no categories are listed: classes are named by the numbers of their categories")
        categories = {category: str(category) for category in known}
    info = content.get("info") if isinstance(content, dict) else None
    used_labels = isinstance(info, dict) and info.get("used_labels") is True
    return CocoFile(images, records, categories, problems, remarks, used_labels)


def left_open(records: Sequence[CocoMask]) -> list[str]:
    """Return remarks on masks of which some have no category, or that are there twice in the same words."""
    remarks = []
    with_category = sum(record.category is not None for record in records)
    if with_category and (without := len(records) - with_category):
        remarks.append(f"{counted(without, 'mask')} without a category: without a class")
    same = Counter((one.image, one.category, hash(repr(one.segmentation))) for one in records)
    if twice := sum(count - 1 for count in same.values()):
        remarks.append(
            f"{counted(twice, 'mask')} with the pixels and the class of an earlier one: each is kept"
        )
    return remarks


def decode(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """Return the mask (height, width) of polygons, or of run lengths, compressed or not.

    Raises:
        MalformedMask: they describe no mask of this size.
    """
    from pycocotools import mask as coco

    if isinstance(segmentation, dict):
        return _decode_runs(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise MalformedMask("it has no segmentation (polygons or run lengths)")
    polygons = [_polygon(polygon, height, width) for polygon in segmentation]
    mask: NDArray[np.bool_] = coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)
    return mask


def encode(mask: NDArray[np.bool_], form: Literal["rle", "polygon"]) -> dict[str, Any] | list[list[float]]:
    """Return a mask (height, width) as compressed run lengths or as polygons; `decode` gives it back from either."""
    if form == "polygon":
        return outlines(mask)
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def run_lengths(counts: str | bytes) -> NDArray[np.int64]:
    """Return the lengths of the runs that COCO's compressed text stands for.

    Each character holds five bits of a number, the lowest first, and whether more follow; from the fourth number on
    it is the difference to the number before the last. Source: pycocotools, rleToString.

    Raises:
        MalformedMask: the text has other characters, or ends within a number.
    """
    raw = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise MalformedMask("its compressed run lengths are broken")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 6:  # 7 characters hold more than any count
        raise MalformedMask("its compressed run lengths are broken")
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    negative = codes[ends] & 16 != 0
    values[negative] -= np.int64(1) << (5 * (ends - starts + 1))[negative]
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def _decode_runs(segmentation: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    """Decode run lengths, once they make the image: pycocotools reads and writes beyond it otherwise."""
    from pycocotools import mask as coco

    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise MalformedMask(
            f"its run lengths are of size {size} (height, width), its image is [{height}, {width}]"
        )
    if isinstance(counts, list) and all(_is_whole(count) and abs(count) < _MOST for count in counts):
        lengths = np.array(counts, np.int64)
    elif isinstance(counts, str | bytes):
        lengths = run_lengths(counts)
    else:
        raise MalformedMask("its run lengths are neither a text nor whole numbers")
    if (lengths < 0).any():
        raise MalformedMask(f"its run lengths hold {lengths.min()}, and none may be below 0")
    # One by one first, or their sum is beyond what a number holds.
    if (
        made := int(max(lengths.max(initial=0), lengths.clip(max=height * width + 1).sum()))
    ) != height * width:
        raise MalformedMask(f"its run lengths make {made} pixels, its image has {height * width}")
    runs = coco.frPyObjects({"size": size, "counts": lengths.tolist()}, height, width)
    mask: NDArray[np.bool_] = coco.decode(runs).astype(bool)
    return mask


def _polygon(polygon: Any, height: int, width: int) -> list[float]:
    if not isinstance(polygon, list) or not all(_is_number(value) for value in polygon):
        raise MalformedMask(f"a polygon is no list of numbers from {-_MOST:g} to {_MOST:g}")
    if len(polygon) < _LEAST or len(polygon) % 2:
        raise MalformedMask(
            f"a polygon has {len(polygon)} numbers, expected x and y of at least three points"
        )
    x, y = polygon[::2], polygon[1::2]
    if min(*x, *y) < -_OUTSIDE or max(x) > width + _OUTSIDE or max(y) > height + _OUTSIDE:
        raise MalformedMask(
            f"a polygon reaches from ({min(x):g}, {min(y):g}) to ({max(x):g}, {max(y):g}), out of its image of "
            f"{width}x{height} pixels (width x height)"
        )
    return polygon


def _record(entry: Any, number: int, noun: str) -> CocoMask:
    place = f"{noun} number {number}"
    if not isinstance(entry, dict):
        raise MalformedMask(f"{place}: expected an object")
    if noun == "annotation" and "id" in entry:
        place = f"annotation {entry['id']}"
        if not _is_id(entry["id"]):
            raise MalformedMask(
                f"{noun} number {number}: its id is {entry['id']!r}, expected a whole number or a text"
            )
    image, category, score = entry.get("image_id"), entry.get("category_id"), entry.get("score", 1.0)
    if not _is_id(image):
        raise MalformedMask(f"{place}: its image_id is {image!r}, expected a whole number or a text")
    if category is not None and not _is_whole(category):
        raise MalformedMask(f"{place}: its category_id is {category!r}, expected a whole number")
    if not _is_number(score):
        raise MalformedMask(
            f"{place}: its score is {score!r}, expected a number from {-_MOST:g} to {_MOST:g}"
        )
    if "segmentation" not in entry:
        raise MalformedMask(f"{place}: it has no segmentation (polygons or run lengths)")
    if (crowd := entry.get("iscrowd", 0)) not in (0, 1):
        raise MalformedMask(f"{place}: its iscrowd is {crowd!r}, expected 0 or 1")
    return CocoMask(place, image, entry["segmentation"], category, float(score), bool(crowd))


def _images(content: dict[str, Any], path: Path, problems: list[str]) -> dict[int | str, CocoImage]:
    images: dict[int | str, CocoImage] = {}
    entries = content.get("images")
    if not isinstance(entries, list) or not entries:
        raise UsageError(
            f"'{path}' is no COCO file: it lists no 'images'; expected a JSON object with 'images' and "
            "'annotations', or an array of results."
        )
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {"id", "file_name"} <= entry.keys():
            problems.append(f"image number {number}: expected an object with 'id' and 'file_name'")
        elif not _is_id(entry["id"]):
            problems.append(
                f"image number {number}: its id is {entry['id']!r}, expected a whole number or a text"
            )
        elif not isinstance(entry["file_name"], str):
            problems.append(
                f"image number {number}: its file_name is {entry['file_name']!r}, expected a text"
            )
        elif entry["id"] in images:
            other = images[entry["id"]].name
            problems.append(
                f"image number {number} ('{entry['file_name']}'): its id {entry['id']} is that of '{other}'"
            )
        else:
            height, width = entry.get("height") or 0, entry.get("width") or 0
            if not _is_whole(height) or not _is_whole(width):
                problems.append(
                    f"image {entry['id']}: its size is {width!r} x {height!r}, expected whole numbers"
                )
                height = width = 0
            images[entry["id"]] = CocoImage(entry["file_name"], height, width)
    return images


def _categories(
    content: dict[str, Any], path: Path, problems: list[str], remarks: list[str]
) -> dict[int, str]:
    names: dict[int, str] = {}
    entries = content.get("categories") or []
    if not isinstance(entries, list):
        raise UsageError(f"The 'categories' of '{path}' are no array.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_whole(entry.get("id")):
            problems.append(f"category number {number}: expected an object with 'id' and 'name'")
        elif entry["id"] in names:
            problems.append(
                f"category number {number}: its id {entry['id']} is that of '{names[entry['id']]}'"
            )
        elif not _is_name(name := entry.get("name", str(entry["id"]))):
            problems.append(f"category number {number}: its name is {name!r}, expected a text")
        elif name in names.values():
            problems.append(f"category number {number}: its name '{name}' is that of another category")
        else:
            names[entry["id"]] = name
    if unnamed := sum(isinstance(entry, dict) and "name" not in entry for entry in entries):
        remarks.append(f"{counted(unnamed, 'category')} without a name: named by the number")
    return names


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: Any) -> TypeGuard[str]:
    """Tell whether a value is a text that can be written: JSON knows halves of characters, UTF-8 does not."""
    return isinstance(value, str) and bool(value.strip()) and not _HALVES.search(value)


def _is_id(value: Any) -> TypeGuard[int | str]:
    return _is_whole(value) or _is_name(value)


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The file '{path}' cannot be read as UTF-8 text ({error}).") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The file '{path}' is no JSON: {error}.") from None
