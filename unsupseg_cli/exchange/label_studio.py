"""Pre-annotations for Label Studio: ``tasks.json`` with a brush mask for each class, and ``labels.xml``.

The masks are run lengths of bits, see `brush`. Source of the format: labelstud.io, "Import pre-annotated data", and the
decoder in Label Studio's own converter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.core.labels import VOID
from unsupseg_cli.exchange.labelled import Classes, LabelledImage
from unsupseg_cli.exchange.table import Wishes

SUFFIX = ""
_CHANNELS = 4  # a mask is stored as if it were RGBA, all four alike
_SIZES = (3, 4, 8, 16)  # bits of a run's length
_VALUE_BITS = 8


def write(out: Path, classes: Classes, images: Iterable[LabelledImage], wishes: Wishes) -> list[str]:
    """Write a task with one prediction for each image; the address of an image is ``url`` and its relative path."""
    tasks = [
        {
            "data": {"image": wishes.url + quote(image.key)},
            "predictions": [{"model_version": "unsupseg", "result": _results(image, classes)}],
        }
        for image in images
    ]
    (out / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    labels = "".join(
        f'    <Label value={quoteattr(entry.name)} background="#{bytes(entry.color).hex()}"/>\n'
        for entry in classes
    )
    config = (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="tag" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
    )
    (out / "labels.xml").write_text(config, encoding="utf-8")
    return []


def _results(image: LabelledImage, classes: Classes) -> list[dict[str, Any]]:
    height, width = image.size
    return [
        {
            "id": f"class{classes[index].id}",
            "type": "brushlabels",
            "from_name": "tag",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": brush(image.labels == index),
                "brushlabels": [classes[index].name],
            },
        }
        for index in np.unique(image.labels[image.labels != VOID]).tolist()
    ]


def brush(mask: NDArray[np.bool_]) -> list[int]:
    """Return a mask (H, W) as the bytes of Label Studio's run lengths.

    32 bits count the values, 5 the bits of a value, 4 each the bits of the four sizes of a length, all but the first
    less one. A run is the bit 1, the number of a size in two bits, its length less one, and its value.
    """
    flat = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(edges, prepend=0, append=flat.size) * _CHANNELS
    bits = [f"{flat.size * _CHANNELS:032b}{_VALUE_BITS - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    value = bool(flat[0])
    for length in lengths.tolist():
        code = "1" * _VALUE_BITS if value else "0" * _VALUE_BITS
        left = length
        while left:
            part = min(left, 1 << _SIZES[-1])
            index = next(index for index, size in enumerate(_SIZES) if part <= 1 << size)
            bits.append(f"1{index:02b}{part - 1:0{_SIZES[index]}b}{code}")
            left -= part
        value = not value
    text = "".join(bits)
    packed: list[int] = np.packbits(np.frombuffer(text.encode("ascii"), np.uint8) - ord("0")).tolist()
    return packed
