"""Segments as a panoptic COCO file in ``annotations``, beside it a folder of PNG files with their numbers.

A pixel's segment is red + 256 green + 65536 blue, 0 is void. Source of the format: cocodataset.org, "Data format",
panoptic segmentation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.names import file_path
from unsupseg_cli.exchange.coco_instances import FIRST_CATEGORY, category, image_entry
from unsupseg_cli.exchange.labelled import Classes, Images, LabelledImage, Region, Regions
from unsupseg_cli.exchange.table import Wishes

SUFFIX = ""
_NAME = "panoptic_default"


def write(out: Path, classes: Classes, images: Iterable[LabelledImage], wishes: Wishes) -> list[str]:
    """Write one segment for each class of an image, and for each region of the classes that are things."""
    things = wishes.things or frozenset[int]()
    regions, files = Regions(wishes.least), Images(out / "images", wishes.images)
    entries, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, image in enumerate(images, 1):
        entries.append(image_entry(image, number))
        numbers, segments = _segments(image.labels, classes, things, regions)
        files.bring(image, image.key.removesuffix(image.suffix))
        name = f"{file_path(image.key)}.png"
        path = out / "annotations" / _NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = np.stack([numbers & 255, (numbers >> 8) & 255, numbers >> 16], axis=-1)
        Image.fromarray(parts.astype(np.uint8)).save(path)
        annotations.append({"image_id": number, "file_name": name, "segments_info": segments})
    content = {
        "images": entries,
        "annotations": annotations,
        "categories": [
            {**category(entry), "isthing": int(index in things)} for index, entry in enumerate(classes)
        ],
    }
    (out / "annotations" / f"{_NAME}.json").write_text(json.dumps(content), encoding="utf-8")
    return regions.remarks() + files.remarks()


def _segments(
    labels: NDArray[np.int16], classes: Classes, things: frozenset[int], regions: Regions
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Return the number of each pixel's segment (H, W), 0 for void, and what the file says of the segments."""
    numbers, segments = np.zeros(labels.shape, np.int32), list[dict[str, Any]]()
    stuff = np.where(np.isin(labels, list(things)), VOID, labels)
    objects = np.where(np.isin(labels, list(things)), labels, VOID).astype(np.int16)
    for part in [*_of_classes(stuff), *regions.of(objects)]:
        segments.append(
            {
                "id": len(segments) + 1,
                "category_id": classes[part.group].id + FIRST_CATEGORY,
                "area": part.area,
                "bbox": part.box,
                "iscrowd": 0,
            }
        )
        numbers[part.whole(labels.shape)] = len(segments)
    return numbers, segments


def _of_classes(labels: NDArray[np.int16]) -> Iterator[Region]:
    """Yield everything of a class as one region."""
    for group in np.unique(labels[labels != VOID]).tolist():
        mask = labels == group
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        yield Region(group, int(rows[0]), int(columns[0]), inside)
