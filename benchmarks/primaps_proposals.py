"""Mask proposals per second, batched, beside an image-at-a-time loop with ``torch.pca_lowrank``: ratios.

    python benchmarks/primaps_proposals.py [--images 8] [--side 40] [--channels 384] [--device cpu]

The loop is the one the tests compare with; both find masks only (no median filter in the loop, no CRF), with
the same threshold and cap, in the same process. ``niter`` is the number of power iterations of the loop's PCA.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from unsupseg_cli.methods.primaps.config import PseudolabelOptions
from unsupseg_cli.methods.primaps.pseudolabel import propose

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "methods" / "primaps"))
from reference_proposals import clustered, reference_proposals, smooth_random


def timed(work: Callable[[], int], device: str) -> tuple[float, int]:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--loop-images", type=int, default=2, help="images that the slow loop sees")
    parser.add_argument("--side", type=int, default=40)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--max-masks", type=int, default=254)
    parser.add_argument("--device", default="cpu", help="of the batched search; the loop runs on the CPU")
    options = parser.parse_args()
    config = PseudolabelOptions(max_masks=options.max_masks)
    print(
        f"{options.side}x{options.side}x{options.channels}, {torch.get_num_threads()} threads, {options.device}"
    )
    for name, make in {"clustered": clustered, "smooth random": smooth_random}.items():
        features = make(options.images, options.side, options.channels)
        moved = features.to(options.device)
        propose(moved[:1], config)

        def ours(batch: torch.Tensor = moved) -> int:
            return sum(len(one) for one in propose(batch, config))

        seconds, masks = timed(ours, options.device)
        rate = options.images / seconds
        print(f"{name}\n  batched       {rate:8.2f} images/s  {masks / options.images:6.1f} masks/image")
        for niter in (4, 100):

            def loop(batch: torch.Tensor = features[: options.loop_images], niter: int = niter) -> int:
                found = [reference_proposals(one, niter=niter, most=config.max_masks)[0] for one in batch]
                return sum(map(len, found))

            seconds, masks = timed(loop, "cpu")
            slow = len(features[: options.loop_images]) / seconds
            print(
                f"  loop niter={niter:<3d}{slow:8.2f} images/s  {masks / options.loop_images:6.1f} masks/image"
                f"  batched is {rate / slow:.1f} times as fast"
            )


if __name__ == "__main__":
    main()
