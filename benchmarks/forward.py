"""A backbone's forward as it is, with its weights and images channels-last, and compiled: what would pay in `extract`?

    python benchmarks/forward.py [--backbone untrained] [--weights FILE] [--size 224] [--batch 16] [--precision auto]
        [--device cpu] [--rounds 5]

The three take turns on the same images, so that other load on the machine meets all. Compiling counts apart, in
seconds; beside the speed stands how far the patch tokens are from those of the forward as it is, by cosine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.data.geometry import snap
from unsupseg_cli.models.backbone import load_backbone, resolve_precision


def seconds(action: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="untrained")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    precision = resolve_precision(options.precision, device)
    backbone = load_backbone(options.backbone, options.weights).prepare(precision, device)
    side = snap(options.size, backbone.patch_size)
    images = torch.randn(options.batch, 3, side, side, device=device).to(
        next(backbone.model.parameters()).dtype
    )
    plain = backbone.model.forward_features
    last = copy.deepcopy(backbone.model).to(memory_format=torch.channels_last).forward_features
    of_last = images.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(plain)
    ways: dict[str, Callable[[], Tensor]] = {
        "as it is": lambda: plain(images),
        "channels-last": lambda: last(of_last),
        "compiled": lambda: compiled(images),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        firsts = {name: seconds(way, device) for name, way in ways.items()}
        for _ in range(options.rounds):
            for name, way in ways.items():
                taken[name].append(seconds(way, device)[0])
    print(f"{options.backbone}, {options.batch} images of {side}x{side}, {precision}, {device}")
    print("| | images/s | ratio | first call, s | least cosine |\n|---|---|---|---|---|")
    truth = firsts["as it is"][1].float()
    for name, rounds in taken.items():
        cosine = F.cosine_similarity(firsts[name][1].float(), truth, dim=-1).min()
        ratio = statistics.median(a / b for a, b in zip(taken["as it is"], rounds, strict=True))
        speed = options.batch / statistics.median(rounds)
        print(f"| {name} | {speed:.1f} | {ratio:.2f} | {firsts[name][0]:.1f} | {float(cosine):.5f} |")


if __name__ == "__main__":
    main()
