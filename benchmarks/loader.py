"""Views per second that reach this process from the decoding processes, in shared memory and through a pipe: one run.

    python benchmarks/loader.py IMAGES [--count 48] [--size 224] [--workers 2] [--rounds 5]

Regions are all anchors of each image, cut out by the processes as `extract --regions` does; "ready" are views of that
size which the processes have at hand, so that what counts is how they come over: one or fifty of them at a time.
Starting the processes counts. The ways take turns, so that other load on the machine meets both: read the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from unsupseg_cli.core.options import RegionConfig
from unsupseg_cli.data import loader
from unsupseg_cli.data.geometry import View, render_part
from unsupseg_cli.data.images import image_size
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.loader import Failed, Loaded
from unsupseg_cli.data.views import FOREGROUND, Regions, anchors, table_of_regions, to_pixels

PATCH = 16
SCALES = RegionConfig.model_fields["scales"].default
RUN_PIXELS = 8_000_000  # as `extract` has a worker render at a time
READY = 10_000

Load = Callable[[], Iterator[Loaded | Failed]]


class Ready(Dataset[Loaded | Failed]):
    """`READY` views of one size, a number of them at a time."""

    def __init__(self, size: int, at_once: int) -> None:
        view = View(0, (0.0, 0.0, float(size), float(size)), size, size)
        self._loaded = Loaded(0, [(view, np.zeros((size, size, 3), np.uint8)) for _ in range(at_once)])

    def __len__(self) -> int:
        return READY // len(self._loaded.views)

    def __getitem__(self, position: int) -> Loaded:
        return self._loaded


def regions(items: list[Item], size: int, workers: int) -> Iterator[Loaded | Failed]:
    sizes = [image_size(item.image) for item in items]
    found = []
    for height, width in sizes:
        boxes = to_pixels(anchors(height, width, SCALES), height, width)
        found.append(Regions(boxes, np.full(len(boxes), -1), np.full(len(boxes), FOREGROUND)))
    table = table_of_regions([item.key for item in items], sizes, found, size, PATCH)
    runs = table.runs(0, len(table), RUN_PIXELS)
    return loader.load_rows(items, table, runs, render, workers=workers)


def ready(size: int, at_once: int, workers: int) -> Iterator[Loaded | Failed]:
    dataset = Ready(size, at_once)
    return loader._load(dataset, len(dataset), workers)


def render(image: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    return render_part(image, view.box, view, "bilinear")


def speed(load: Load) -> float:
    start, count = time.perf_counter(), 0
    for loaded in load():
        assert isinstance(loaded, Loaded)
        count += len(loaded.views)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size, workers = options.size, options.workers
    paths = sorted(path for path in options.images.rglob("*") if path.suffix in {".jpg", ".png"})
    chosen = [paths[number % len(paths)] for number in range(options.count)]
    items = [Item(f"{number}", path) for number, path in enumerate(chosen)]
    cases: dict[str, Load] = {
        "regions": lambda: regions(items, size, workers),
        "ready, 50 at a time": lambda: ready(size, 50, workers),
        "ready, 1 at a time": lambda: ready(size, 1, workers),
    }
    slot = loader._SLOT
    print(f"{options.count} images, {size} pixels, {workers} processes; views/s")
    for case, load in cases.items():
        taken: dict[str, list[float]] = {"shared": [], "pipe": []}
        for _ in range(options.rounds):
            for way, speeds in taken.items():
                loader._SLOT = slot if way == "shared" else 0
                speeds.append(speed(load))
        ratio = statistics.median(a / b for a, b in zip(taken["shared"], taken["pipe"], strict=True))
        medians = {way: statistics.median(speeds) for way, speeds in taken.items()}
        print(
            f"  {case:20s} shared {medians['shared']:8.0f}   pipe {medians['pipe']:8.0f}   ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
