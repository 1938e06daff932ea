"""A zip of masks in the colours of the classes, as CVAT imports "Segmentation mask 1.1".

Black is background, and so is void. Source of the format: docs.cvat.ai, "Segmentation mask".
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.exchange.labelled import Classes, LabelledImage, Names
from unsupseg_cli.exchange.table import Wishes
from unsupseg_cli.exchange.voc import label_map

SUFFIX = ".zip"


def write(out: Path, classes: Classes, images: Iterable[LabelledImage], wishes: Wishes) -> list[str]:
    """Write masks, the list of their names, and the labels with their colours, by which CVAT tells classes apart."""
    _require_colors(classes)
    colors = np.array([*(entry.color for entry in classes), (0, 0, 0)], np.uint8)  # void is -1, the last
    names, listed = Names(), list[str]()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for image in images:
            listed.append(names.of(image.key))
            picture = io.BytesIO()
            Image.fromarray(colors[image.labels]).save(picture, "PNG")
            archive.writestr(f"SegmentationClass/{listed[-1]}.png", picture.getvalue())
        text, remarks = label_map([entry.name for entry in classes], [entry.color for entry in classes])
        archive.writestr("labelmap.txt", text)
        archive.writestr("ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in listed))
    return remarks


def _require_colors(classes: Classes) -> None:
    """Raise UsageError where two classes, or a class and the background, have one colour."""
    seen = {(0, 0, 0): "the background"}
    for entry in classes:
        if (other := seen.setdefault(entry.color, entry.name)) != entry.name:
            raise UsageError(
                f"'{entry.name}' has the colour of '{other}', and CVAT tells classes apart by colour: give it another "
                "one with `unsupseg classes color`, then `unsupseg classes apply`."
            )
