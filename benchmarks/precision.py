"""Deviation of bf16 and fp16 patch tokens from fp32, on the bundled scenes: cosine, mean and least.

python benchmarks/precision.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import read_image
from unsupseg_cli.models.backbone import load_backbone

CPU = torch.device("cpu")


def main() -> None:
    geometry = Geometry(kind="native", size=320)
    items = open_dataset("scenes", split="val").items[::8]
    for name in ("untrained", "tiny"):
        backbone = load_backbone(name)
        tokens = {}
        for precision in ("fp32", "bf16", "fp16"):
            backbone.prepare(precision, CPU)
            parts = []
            for item in items:
                image = read_image(item.image)
                view = geometry.views(image.shape[0], image.shape[1], backbone.patch_size)[0]
                pixels = torch.tensor(geometry.render(image, view)[None])
                parts.append(backbone(backbone.normalise(pixels), keep=("patch",))["patch"].flatten(0, 2))
            tokens[precision] = torch.cat(parts)
        for precision in ("bf16", "fp16"):
            cosine = F.cosine_similarity(tokens["fp32"], tokens[precision], dim=-1)
            print(f"{name:10s} {precision} mean {cosine.mean():.6f} least {cosine.min():.6f}")


if __name__ == "__main__":
    main()
