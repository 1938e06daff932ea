"""Reading a label file as classes: the one place of the stages that opens labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.data.items import Item
from unsupseg_cli.data.labels import LabelSpace, check_label_size, read_label


def read_truth(item: Item, space: LabelSpace, image_size: tuple[int, int]) -> NDArray[np.int16]:
    """Read the classes (H, W) of an item's label; raises UsageError for a wrong size or unknown values."""
    assert item.label is not None
    raw = read_label(item.label, space.palette)
    check_label_size(item.label, raw.shape[:2], item.image, image_size)
    return space.encode(raw, item.label)
