"""MaskDistill's object masks per second, and their peak memory: as `pseudolabel` finds them, beside the published way.

    python benchmarks/mask_speed.py [--images 32] [--size 640] [--patch 16] [--rounds 5]

The published code takes one image at a time and makes the matrix of all affinities between its patches
(gen_masks.py). Both work on the same made-up keys of 6 heads, find the same masks, and alternate in one process, so
that other load on the machine meets both: read the ratio. Memory is that of a process of its own for each, less what
it holds before it begins.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.data.masks import component
from unsupseg_cli.methods.maskdistill.config import MasksOptions
from unsupseg_cli.methods.maskdistill.masks import cls_affinity, find_objects

BATCH = 16  # images that `pseudolabel` gives a labeller at a time
CHANNELS = 384
OPTIONS = MasksOptions(center="none", threshold=0)


def made_up(images: int, rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return smooth keys (rows, columns, C) and the CLS query (C,) of each image."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(images, CHANNELS, 6, 8, generator=random)
    keys = F.interpolate(coarse, (rows, columns), mode="bilinear").permute(0, 2, 3, 1).contiguous()
    return list(keys), list(torch.randn(images, CHANNELS, generator=random))


def in_batches(keys: list[Tensor], queries: list[Tensor]) -> list[NDArray[np.bool_]]:
    masks = []
    for start in range(0, len(keys), BATCH):
        part = slice(start, start + BATCH)
        masks += [objects.masks[0] for objects in find_objects(keys[part], queries[part], OPTIONS)]
    return masks


def one_by_one(keys: list[Tensor], queries: list[Tensor]) -> list[NDArray[np.bool_]]:
    masks = []
    for grid, query in zip(keys, queries, strict=True):
        flat = grid.flatten(0, 1)
        heads = flat.unflatten(1, (-1, OPTIONS.head_size)).transpose(0, 1)
        affinities = (heads @ heads.mT).sum(0)
        order = cls_affinity(flat[None], query[None], OPTIONS)[0].argsort(descending=True, stable=True)
        nodes = order[: round(OPTIONS.top * len(flat))]
        nodes = nodes[affinities[order[0], nodes] > 0]
        agrees = affinities[nodes].sum(0) > 0
        masks.append(component(agrees.view(grid.shape[:2]).numpy(), int(order[0])))
    return masks


def resident(field: str) -> int:
    """Return a field of what Linux tells of this process, in KiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0])


WAYS = {"batches": in_batches, "one by one": one_by_one}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=640, help="shorter side in pixels, of a frame of 3:4")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows = options.size // options.patch
    keys, queries = made_up(options.images, rows, rows * 4 // 3)
    if options.memory:
        WAYS[options.memory](keys[:1], queries[:1])
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
        before = resident("VmRSS")
        WAYS[options.memory](keys, queries)
        print((resident("VmHWM") - before) // 1024)
        return
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        made = []
        for name, way in WAYS.items():
            start = time.perf_counter()
            made.append(way(keys, queries))
            seconds[name].append(time.perf_counter() - start)
        same = sum(np.array_equal(*pair) for pair in zip(*made, strict=True))
    print(
        f"{options.images} images of {rows} x {rows * 4 // 3} patches, {torch.get_num_threads()} threads; "
        f"{same} masks are the same"
    )
    for name, taken in seconds.items():
        call = [sys.executable, __file__, *sys.argv[1:], "--memory", name]
        memory = subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()
        print(
            f"  {name:12s} {options.images / statistics.median(taken):8.1f} masks/s, {memory:>5s} MiB at most"
        )
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    print(f"  ratio        {ratio:8.2f}")


if __name__ == "__main__":
    main()
