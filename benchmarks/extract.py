"""Images per second of `extract`, decoding and writing included, beside a bare timm forward loop: a ratio.

    python benchmarks/extract.py IMAGES [--count 96] [--backbone untrained] [--weights FILE] [--device cpu] [--rounds 3]

The bare loop runs the same architecture at the same precision and size on images that lie decoded in the memory of the
device.
The two alternate in one process, so that other load on the machine meets both.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from unsupseg_cli import Context, ExtractConfig, extract
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.data.geometry import snap
from unsupseg_cli.models.backbone import load_backbone, resolve_precision

SIZE = 320


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--backbone", default="untrained")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    paths = sorted(path for path in options.images.rglob("*") if path.suffix in {".jpg", ".png"})[
        : options.count
    ]
    device = torch.device(options.device)
    precision = resolve_precision("auto", device)
    backbone = load_backbone(options.backbone, options.weights).prepare(precision, device)
    side = snap(SIZE, backbone.patch_size)
    images = torch.randn(options.batch, 3, side, side, device=device)
    model = backbone.model
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        for path in paths:
            shutil.copy(path, folder / path.name)
        for number in range(options.rounds):
            workspace = Workspace(Path(name) / f"workspace-{number}")
            config = ExtractConfig(
                dataset=str(folder),
                backbone=options.backbone,
                weights=options.weights,
                device=options.device,
                geometry="stego",
                size=SIZE,
                batch_size=options.batch,
                workers=options.workers,
            )
            features = extract(config, Context(workspace))
            ours.append(len(paths) / features.manifest.seconds)
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
            start = time.perf_counter()
            with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                for first in range(0, len(paths), options.batch):
                    tokens = model.forward_features(images[: min(options.batch, len(paths) - first)])
                float(tokens.sum())  # waits for the device
            bare.append(len(paths) / (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    print(
        f"{options.backbone}, {side}x{side}, {precision}, {options.device}, {len(paths)} images, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"  extract          {statistics.median(ours):7.2f} images/s")
    print(f"  bare timm loop   {statistics.median(bare):7.2f} images/s")
    print(f"  ratio            {ratio:7.2f}")


if __name__ == "__main__":
    main()
