"""Reading a label file as classes: the one place of the stages that opens labels."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unsupseg_cli.data.items import Item
from unsupseg_cli.data.labels import LabelSpace, check_label_size, read_label


def read_truth(item: Item, space: LabelSpace, image_size: tuple[int, int]) -> NDArray[np.int16]:
    """Read the classes (H, W) of an item's label; raises UsageError for a wrong size or unknown values."""
    assert item.label is not None
    raw = read_label(item.label, space.palette)
    check_label_size(item.label, raw.shape[:2], item.image, image_size)
    return space.encode(raw, item.label)


def true_objects(
    truth: NDArray[np.int16], background: Collection[int], least: float
) -> Iterator[tuple[NDArray[np.bool_], int]]:
    """Yield the objects of a label map (H, W), each a mask and its class.

    An object is a region, connected over edges, of one class that is no ``background``, on at least the share ``least``
    of the image.
    """
    for group in np.unique(truth[truth >= 0]).tolist():
        if group in background:
            continue
        regions, _ = ndimage.label(truth == group)
        areas = np.bincount(regions.ravel())
        for number in np.flatnonzero(areas >= least * truth.size).tolist():
            if number:  # 0 is what is not of the class
                yield regions == number, group
