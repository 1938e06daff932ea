"""Connected regions as a COCO file of annotations, with compressed run lengths.

A category is the id of its class and 1: programs take category 0 for none. Source of the format: cocodataset.org,
"Data format".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unsupseg_cli.data.coco import encode
from unsupseg_cli.exchange.labelled import Class, Classes, LabelledImage, Regions
from unsupseg_cli.exchange.table import Wishes

SUFFIX = ".json"
FIRST_CATEGORY = 1


def write(out: Path, classes: Classes, images: Iterable[LabelledImage], wishes: Wishes) -> list[str]:
    """Write one annotation for each region."""
    regions, entries, annotations = Regions(wishes.least), list[dict[str, Any]](), list[dict[str, Any]]()
    for number, image in enumerate(images, 1):
        entries.append(image_entry(image, number))
        for region in regions.of(image.labels):
            if wishes.things is not None and region.group not in wishes.things:
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": classes[region.group].id + FIRST_CATEGORY,
                    "segmentation": encode(region.whole(image.size), "rle"),
                    "area": region.area,
                    "bbox": region.box,
                    "iscrowd": 0,
                }
            )
    content = {
        "images": entries,
        "annotations": annotations,
        "categories": [category(entry) for entry in classes],
    }
    out.write_text(json.dumps(content), encoding="utf-8")
    return regions.remarks()


def image_entry(image: LabelledImage, number: int) -> dict[str, Any]:
    """Return what a COCO file says of an image."""
    height, width = image.size
    return {"id": number, "file_name": image.key, "height": height, "width": width}


def category(entry: Class) -> dict[str, Any]:
    """Return what a COCO file says of a class."""
    return {
        "id": entry.id + FIRST_CATEGORY,
        "name": entry.name,
        "supercategory": "",
        "color": list(entry.color),
    }
