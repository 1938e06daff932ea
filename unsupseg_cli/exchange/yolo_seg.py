"""Connected regions as polygons for YOLO: ``data.yaml``, a text file for each image, and the images beside them.

A line is the number of a class and the corners of a polygon, x and y over the sides of the image. Numbers count classes
from 0 without holes: they are ids where no class was merged. Source of the format: docs.ultralytics.com, "Instance
Segmentation Datasets".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from unsupseg_cli.core.labels import moved_without_holes
from unsupseg_cli.data.polygons import outlines
from unsupseg_cli.exchange.labelled import Classes, Images, LabelledImage, Names, Region, Regions
from unsupseg_cli.exchange.table import Wishes

SUFFIX = ""


def write(out: Path, classes: Classes, images: Iterable[LabelledImage], wishes: Wishes) -> list[str]:
    """Write one polygon for each region; holes are joined to their outline by a line that is walked both ways."""
    regions, files, names = (
        Regions(wishes.least),
        Images(out / "images" / "train", wishes.images),
        Names(),
    )
    for image in images:
        name = names.of(image.key)
        files.bring(image, name)
        lines = [
            _line(region, image.size)
            for region in regions.of(image.labels)
            if wishes.things is None or region.group in wishes.things
        ]
        path = out / "labels" / "train" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="ascii")
    table = "".join(
        f"  {number}: {json.dumps(entry.name, ensure_ascii=False)}\n" for number, entry in enumerate(classes)
    )
    # Without `path` folders are relative to the file; a `path` of "." is that of the process which reads it.
    yaml = f"train: images/train\nval: images/train\nnames:\n{table}"
    (out / "data.yaml").write_text(yaml, encoding="utf-8")
    return regions.remarks() + files.remarks() + _remarks_on_numbers(classes)


def _remarks_on_numbers(classes: Classes) -> list[str]:
    """Return which classes have another number than their id, a line."""
    moved = moved_without_holes([entry.id for entry in classes])
    return (
        [f"YOLO's numbers of classes have no holes, so that they are not the ids: {moved}"] if moved else []
    )


def _line(region: Region, size: tuple[int, int]) -> str:
    height, width = size
    (polygon,) = outlines(region.mask)
    corners = (
        f"{(x + region.left) / width:.6g} {(y + region.top) / height:.6g}"
        for x, y in zip(polygon[::2], polygon[1::2], strict=True)
    )
    return f"{region.group} {' '.join(corners)}\n"
