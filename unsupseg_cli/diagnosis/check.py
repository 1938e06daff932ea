"""datasets check: read every image and label of a split once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.data.datasets import Dataset
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.label_survey import remark_on_counts, settle_labels
from unsupseg_cli.data.truth import read_truth


@dataclass
class Check:
    """What was found: counts, sizes (height, width), pixels by class name (void included), problems, remarks."""

    images: int = 0
    labelled: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def check_dataset(dataset: Dataset, track: Callable[[list[Item]], Iterable[Item]]) -> Check:
    """Read every image and label; errors are collected, not raised."""
    report = Check(remarks=list(dataset.remarks[1:]))
    if dataset.problem:
        report.problems.append(dataset.problem)
    space, pixels = dataset.space, Counter[int]()
    if space is not None:
        try:
            space, remarks = settle_labels(dataset.items, space)
            report.remarks += remarks
        except UnsupsegError as error:
            report.problems.append(str(error))
    names = [*space.names, "(void)"] if space else []
    for item in track(list(dataset.items)):
        try:
            height, width = read_image(item.image).shape[:2]
            report.images += 1
            report.sizes[height, width] += 1
            if item.label is not None and space is not None:
                truth = read_truth(item, space, (height, width))
                report.labelled += 1
                counts = np.bincount(np.where(truth < 0, len(names) - 1, truth).ravel(), minlength=len(names))
                report.pixels.update({name: int(n) for name, n in zip(names, counts, strict=True)})
                pixels.update(dict(zip((*range(len(names) - 1), VOID), counts.tolist(), strict=True)))
        except UnsupsegError as error:
            report.problems.append(str(error))
    if space is not None and report.labelled:
        report.remarks += remark_on_counts(space, pixels)
    return report
