"""Label maps laid out as PASCAL VOC: palette PNG files in ``SegmentationClass``, and ``labelmap.txt``.

Value 0 is the background of VOC, which has no class here; the class of id k is k + 1, void is 255, called ``ignored``.
Source of the format: PASCAL VOC 2012 development kit; ``labelmap.txt``: docs.cvat.ai, "Pascal VOC".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unsupseg_cli.exchange.labelled import Classes, Images, LabelledImage, Names, require_low
from unsupseg_cli.exchange.table import Wishes

SUFFIX = ""
BACKGROUND, VOID_VALUE = 0, 255
_IGNORED, _VOID_COLOR = "ignored", (224, 224, 192)


def write(out: Path, classes: Classes, images: Iterable[LabelledImage], wishes: Wishes) -> list[str]:
    """Write a palette PNG for each image, the list of images, and the images where they are asked for."""
    require_low(classes, VOID_VALUE - 2, "values of VOC go up to 254, and 0 is the background")
    value_of = np.array([*(entry.id + 1 for entry in classes), VOID_VALUE], np.uint8)  # VOID is -1, the last
    table = np.zeros((256, 3), np.uint8)
    table[value_of[:-1]] = [entry.color for entry in classes]
    table[VOID_VALUE] = _VOID_COLOR
    files, names, listed = Images(out / "JPEGImages", wishes.images), Names(), list[str]()
    has_void = False
    for image in images:
        name = names.of(image.key)
        listed.append(name)
        files.bring(image, name)
        values = value_of[image.labels]
        has_void = has_void or bool((values == VOID_VALUE).any())
        picture = Image.fromarray(values)
        picture.putpalette(table.tobytes())
        path = out / "SegmentationClass" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    texts, remarks = label_map([entry.name for entry in classes], [entry.color for entry in classes])
    void = f"{_IGNORED}:{','.join(map(str, _VOID_COLOR))}::\n" if has_void else ""
    (out / "labelmap.txt").write_text(texts + void, encoding="utf-8")
    listing = out / "ImageSets" / "Segmentation" / "default.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")
    return remarks + files.remarks()


def label_map(names: Sequence[str], colors: Sequence[tuple[int, int, int]]) -> tuple[str, list[str]]:
    """Return the text of ``labelmap.txt``, and which names had to be changed: ``:`` and ``#`` mean something there."""
    lines, remarks = ["# label:color_rgb:parts:actions\n", "background:0,0,0::\n"], list[str]()
    taken = {"background", _IGNORED, *names}
    for name, color in zip(names, colors, strict=True):
        plain = name.replace(":", "_").replace("#", "_")
        while plain in taken and (plain != name or plain in ("background", _IGNORED)):
            plain = f"{plain}_"
        taken.add(plain)
        if plain != name:
            remarks.append(f"'{name}' is called '{plain}' in labelmap.txt")
        lines.append(f"{plain}:{','.join(map(str, color))}::\n")
    return "".join(lines), remarks
