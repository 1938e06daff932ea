"""Boxes per second of `extract --regions` beside a bare timm loop on the same crops, and its peak memory: one run.

    python benchmarks/regions.py IMAGES [--count 8] [--size 224] [--whole 448] [--backbone tiny] [--weights FILE]
        [--device cpu] [--precision auto]
    python benchmarks/regions.py IMAGES --memory 100,1000 --size 32 --backbone untrained

The regions are all anchors of every image. The bare loop embeds the same crops, rendered before and held in the memory
of the device. Both, and `--embed masked` on images with a shorter side of --whole pixels, alternate in one process, so
that other load on the machine meets all: read the ratios. With --memory the regions of so many images (taken again
where there are fewer) are embedded in a process of their own each.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from unsupseg_cli import Context, ExtractConfig, extract
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.core.options import Embedding, Precision
from unsupseg_cli.data.geometry import render_part
from unsupseg_cli.data.images import read_image
from unsupseg_cli.models.backbone import load_backbone, resolve_precision


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--whole", type=int, default=448)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--memory", help="numbers of images, separated by commas")
    return parser.parse_args()


def gather(options: argparse.Namespace, folder: Path) -> None:
    paths = sorted(path for path in options.images.rglob("*") if path.suffix in {".jpg", ".png"})
    folder.mkdir()
    for number in range(options.count):
        path = paths[number % len(paths)]
        shutil.copy(path, folder / f"{number:05d}{path.suffix}")


def config(options: argparse.Namespace, folder: Path, embed: Embedding = "crop") -> ExtractConfig:
    return ExtractConfig(
        dataset=f"{folder}/",
        regions="anchors",
        foreground_share=0,
        embed=embed,
        size=options.size if embed == "crop" else options.whole,
        backbone=options.backbone,
        weights=options.weights,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch,
        workers=options.workers,
    )


def compare(options: argparse.Namespace, root: Path) -> None:
    device = torch.device(options.device)
    precision = resolve_precision(options.precision, device)
    backbone = load_backbone(options.backbone, options.weights).prepare(precision, device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    gather(options, root / "images")
    ours, masked, bare = [], [], []
    crops: list[torch.Tensor] = []
    for number in range(options.rounds):
        context = Context(Workspace(root / f"workspace-{number}"))
        kinds: tuple[tuple[Embedding, list[float]], ...] = (("masked", masked), ("crop", ours))
        for embed, speeds in kinds:
            made = extract(config(options, root / "images", embed), context)
            assert made is not None
            table = FeatureSet(made)
            speeds.append(len(table) / made.manifest.seconds)
        if not crops:
            crops = in_batches(table, root / "images", options.batch, device)
        start = time.perf_counter()
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            for batch in crops:
                tokens = backbone.model.forward_features(backbone.normalise(batch))
            float(tokens.sum())  # waits for the device
        bare.append(len(table) / (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    height, width = crops[0].shape[1:3]
    print(
        f"{options.backbone}, {height}x{width}, {precision}, {options.device}, {options.count} images, "
        f"{sum(map(len, crops))} boxes, {torch.get_num_threads()} threads"
    )
    print(f"  extract --regions{statistics.median(ours):9.1f} boxes/s")
    print(f"  bare timm loop   {statistics.median(bare):9.1f} boxes/s")
    print(f"  ratio            {ratio:9.2f}")
    print(
        f"  --embed masked   {statistics.median(masked):9.1f} boxes/s, of whole images of {options.whole} pixels"
    )
    print(f"  its ratio to crops{statistics.median(a / b for a, b in zip(masked, ours, strict=True)):8.1f}")


def in_batches(table: FeatureSet, folder: Path, batch: int, device: torch.device) -> list[torch.Tensor]:
    crops: list[np.ndarray] = []
    image, last = None, ""
    for row, key in enumerate(table.views["key"]):
        if key != last:
            image, last = read_image(folder / key), key
        view = table.view(row)
        crops.append(render_part(image, view.box, view, "bilinear"))
    return [
        torch.from_numpy(np.stack(crops[first : first + batch])).to(device)
        for first in range(0, len(crops), batch)
    ]


def memory(options: argparse.Namespace, root: Path) -> None:
    gather(options, root / "images")
    made = extract(config(options, root / "images"), Context(Workspace(root / "workspace")))
    assert made is not None
    usage = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"{options.count} images, {made.manifest.summary['views']} boxes: {usage / 1024:.0f} MiB at most")


def main() -> None:
    options = parse()
    if options.memory and "," in options.memory:
        for count in options.memory.split(","):
            arguments = [value for value in sys.argv[1:] if value not in ("--memory", options.memory)]
            subprocess.run([sys.executable, __file__, *arguments, "--memory", count], check=True)
        return
    with tempfile.TemporaryDirectory() as name:
        if options.memory:
            options.count = int(options.memory)
            memory(options, Path(name))
        else:
            compare(options, Path(name))


if __name__ == "__main__":
    main()
