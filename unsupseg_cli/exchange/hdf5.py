"""Label maps as one HDF5 file: a compressed array for each image, at ``labels/KEY``, and the classes as attributes.

Values are ids. ``class_ids``, ``class_names`` and ``class_colors`` are in one order.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from unsupseg_cli.exchange.labelled import Classes, LabelledImage
from unsupseg_cli.exchange.table import Wishes

SUFFIX = ".h5"


def write(out: Path, classes: Classes, images: Iterable[LabelledImage], wishes: Wishes) -> list[str]:
    """Write arrays (H, W) of ids; the attributes tell ids, names and colours of classes, and the value of void."""
    void, kind = (255, np.uint8) if classes[-1].id < 255 else (65535, np.uint16)
    values = np.array([*(entry.id for entry in classes), void], kind)  # VOID is -1, the last
    with h5py.File(out, "w") as file:
        file.attrs["class_ids"] = values[:-1]
        file.attrs["class_names"] = [entry.name for entry in classes]
        file.attrs["class_colors"] = np.array([entry.color for entry in classes], np.uint8)
        file.attrs["void"] = void
        group = file.create_group("labels")
        for image in images:
            group.create_dataset(image.key, data=values[image.labels], compression="gzip", shuffle=True)
    return []
