"""Reads from the store beside numpy memory-mapping, in one run: patch features (ratios), and label maps of masks.

    python benchmarks/store.py [--views 700] [--rounds 5] [--masks PSEUDOLABELS ...]

All read the same array from files that the system has cached, and return a fresh copy. Label maps are those of
artifacts of `pseudolabel` or `import-masks` whose maps have one size (their folders), repeated; by default made-up
blobs. They are also read once from the disk: after the system was told to forget their files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from scipy import ndimage

from unsupseg_cli.artifacts.grids import GridReader, GridWriter, views_per_block
from unsupseg_cli.artifacts.packed import PackedReader, PackedWriter
from unsupseg_cli.contents.masks import MaskTable


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def forget(folder: Path) -> None:
    """Tell the system to keep nothing of the files of a folder in memory; those that are mapped stay."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write(folder: Path, values: np.ndarray) -> None:
    grids = np.tile([values.shape[1:3]], (len(values), 1))
    size = views_per_block(grids, values.shape[3:], values.dtype)
    writer = GridWriter(folder, "patch", grids, values.shape[3:], values.dtype, size)
    for block, start in enumerate(range(0, len(values), size)):
        writer.write(block, list(values[start : start + size]))
    writer.close()


def blobs(height: int = 360, width: int = 480, count: int = 48) -> list[np.ndarray]:
    """Return label maps of five masks with smooth borders."""
    rng = np.random.default_rng(0)
    zoom = (1, height / 6, width / 8)
    return [ndimage.zoom(rng.normal(size=(5, 6, 8)), zoom, order=1).argmax(0) - 1 for _ in range(count)]


def time_label_maps(options: argparse.Namespace, maps: list[np.ndarray]) -> None:
    """Time single reads of label maps in random order, compressed and not."""
    views = [np.roll(maps[i % len(maps)], 7 * i, 1).astype(np.int16) for i in range(options.views)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = np.tile([views[0].shape], (len(views), 1))
        size = views_per_block(sizes, (), np.int16)
        plain, packed = (
            GridWriter(folder, "plain", sizes, (), np.int16, size),
            PackedWriter(folder, "packed", np.int16),
        )
        told = []
        for block, start in enumerate(range(0, len(views), size)):
            plain.write(block, views[start : start + size])
            told += packed.write(block, [view[None] for view in views[start : start + size]])
        plain.close()
        packed.close(told)
        np.save(folder / "map.npy", np.stack(views))
        mapped = np.load(folder / "map.npy", mmap_mode="r")
        order = np.random.default_rng(0).permutation(len(views)).tolist()
        cold: dict[str, list[float]] = {"not compressed": [], "as artifacts hold them": []}
        for _ in range(options.rounds):
            for reader, taken in cold.items():
                forget(folder)
                fresh: Any = GridReader(folder, "plain")
                if reader != "not compressed":
                    fresh = PackedReader(folder, "packed", np.int16)
                taken.append(seconds(lambda fresh=fresh: [fresh[view] for view in order]) / len(views))
                del fresh
        readers: dict[str, Any] = {
            "numpy memory map": lambda view, mapped=mapped: np.array(mapped[view]),
            "not compressed": GridReader(folder, "plain").__getitem__,
            "as artifacts hold them": PackedReader(folder, "packed", np.int16).__getitem__,
        }
        times: dict[str, list[float]] = {reader: [] for reader in readers}
        for _ in range(options.rounds):
            for reader, read in readers.items():
                times[reader] += [seconds(lambda view=view, read=read: read(view)) for view in order]
        height, width = views[0].shape
        stored = np.mean([length for length, *_ in told])
        print(
            f"{len(views)} label maps of {height}x{width}: {views[0].nbytes:,} bytes each, stored {stored:,.0f}"
        )
        for reader, taken in times.items():
            print(f"  one of them {reader:24s} {1e6 * statistics.median(taken):.1f} us")
        for reader, taken in cold.items():
            print(f"  from the disk {reader:22s} {1e6 * statistics.median(taken):.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--masks", type=Path, nargs="+", default=[])
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    values = rng.normal(size=(options.views, 22, 30, 384)).astype(np.float16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, values)
        np.save(folder / "plain.npy", values)
        plain = np.load(folder / "plain.npy", mmap_mode="r")
        store = GridReader(folder, "patch")
        through_zarr = zarr.open_array(folder / "patch", mode="r")
        batches = [rng.integers(0, options.views, 32) for _ in range(30)]
        spans = [(start, min(start + 32, options.views)) for start in range(0, options.views, 32)]
        cases: dict[str, dict[str, Callable[[], Any]]] = {
            "random batches of 32": {
                "numpy memory map": lambda: [np.asarray(plain[batch]) for batch in batches],
                "store": lambda: [np.stack(store.take(batch)) for batch in batches],
                "zarr itself": lambda: [through_zarr.oindex[np.unique(batch)] for batch in batches],
            },
            "sequential, 32 at a time": {
                "numpy memory map": lambda: [np.array(plain[a:b]) for a, b in spans],
                "store": lambda: [store.take(range(a, b)) for a, b in spans],
                "zarr itself": lambda: [through_zarr[a:b] for a, b in spans],
            },
        }
        print(
            f"{options.views} views of 22x30x384 float16, {values.nbytes / 1e6:.0f} MB; speed relative to numpy"
        )
        for case, readers in cases.items():
            times: dict[str, list[float]] = {reader: [] for reader in readers}
            for _ in range(options.rounds):
                for reader, action in readers.items():
                    times[reader].append(seconds(action))
            base = statistics.median(times["numpy memory map"])
            for reader, taken in times.items():
                print(f"  {case:26s} {reader:18s} {base / statistics.median(taken):.2f}")
    for masks in options.masks:
        table = MaskTable(masks)
        print(f"\n{masks.name}: ", end="")
        time_label_maps(options, [table.label_map(view) for view in range(len(table))])
    if not options.masks:
        time_label_maps(options, blobs())


if __name__ == "__main__":
    main()
