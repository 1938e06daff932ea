"""Reads of patch features from the store beside numpy memory-mapping, in one run: ratios.

    python benchmarks/store.py [--views 700] [--rounds 5]

Both read the same float16 array from files that the system has cached; both return a fresh copy.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from unsupseg_cli.artifacts.grids import GridReader, GridWriter, views_per_block


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def write(folder: Path, values: np.ndarray) -> None:
    grids = np.tile([values.shape[1:3]], (len(values), 1))
    size = views_per_block(grids, values.shape[3:], values.dtype)
    writer = GridWriter(folder, "patch", grids, values.shape[3:], values.dtype, size)
    for block, start in enumerate(range(0, len(values), size)):
        writer.write(block, list(values[start : start + size]))
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=5)
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


if __name__ == "__main__":
    main()
