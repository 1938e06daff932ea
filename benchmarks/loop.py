"""Steps per second of the training loop beside another checkout's, and beside the bare forward, backward and step.

    python benchmarks/loop.py OTHER_CHECKOUT [--steps 20] [--rounds 5] [--views 64] [--side 28] [--device cpu]

STEGO and PriMaPs-EM train on made-up tokens in memory, `pretrain` on made-up images. Nothing is saved. Every round
runs each loop in a process of its own, one after the other, since other work may load the machine: read the ratios.
Each keeps the memory that it frees, as every stage does (`core/memory.py`), or the ratios are those of page faults.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FIRST = 3  # steps that are not timed
METHODS = ("stego", "primaps", "pretrain")
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}


def trainer_of(method: str, views: int, side: int, device: str) -> Any:
    """Return a trainer on tokens (side, side, 384) of some views, or on as many images."""
    import numpy as np
    import torch

    if method == "pretrain":
        from unsupseg_cli.pretraining.config import PretrainConfig
        from unsupseg_cli.pretraining.train import Pretrainer

        # Crops of one size: the last steps of a run take larger ones.
        config = PretrainConfig(batch=min(32, views), final_from=1.0, precision="fp32", device=device)
        images = np.random.default_rng(0).integers(0, 256, (views, 3, 144, 144), np.uint8)
        return Pretrainer(config, images, torch.ones(views))
    from unsupseg_cli.methods.interface import Inputs, MaskSet
    from unsupseg_cli.methods.primaps.config import TrainOptions as PrimapsOptions
    from unsupseg_cli.methods.primaps.train import PrimapsTrainer
    from unsupseg_cli.methods.stego.config import TrainOptions as StegoOptions
    from unsupseg_cli.methods.stego.train import StegoTrainer
    from unsupseg_cli.training.tokens import MemorySource

    draw = torch.Generator().manual_seed(0)
    source = MemorySource([torch.randn(side, side, 384, generator=draw) for _ in range(views)])
    given: dict[str, Any] = {"classes": 27, "seed": 0, "network": None, "device": torch.device(device)}
    if method == "stego":
        graph = np.array(
            [[(view + 1 + near) % views for near in range(7)] for view in range(views)], np.int32
        )
        return StegoTrainer(StegoOptions(), Inputs(source, graph=graph, masks=None, **given))
    labels = [np.kron(np.arange(4).reshape(2, 2), np.ones((side // 2, side // 2))).astype(np.int16)] * views
    masks = MaskSet(labels, [np.full(4, -1)] * views, {})
    options = PrimapsOptions(init_restarts=1)
    return PrimapsTrainer(options, Inputs(source, masks=masks, model=None, **given))


def batch_of(trainer: Any) -> int:
    """Return the views of a step."""
    return trainer.config.batch if hasattr(trainer, "config") else trainer.batch


def time_fit(trainer: Any, options: argparse.Namespace) -> float:
    """Return steps per second of the loop of the tree that this process runs."""
    from lightning_fabric import Fabric

    from unsupseg_cli.training.loop import Schedule, fit

    times: list[float] = []

    def track(numbers: Any, done: int) -> Any:
        for number in numbers:
            times.append(time.perf_counter())
            yield number
        times.append(time.perf_counter())

    schedule = Schedule(options.steps + _FIRST, batch_of(trainer), options.views, seed=0)
    fit(trainer, schedule, Fabric(accelerator=options.device, devices=1), track=track)
    return options.steps / (times[-1] - times[_FIRST])


def time_bare(trainer: Any, options: argparse.Namespace) -> float:
    """Return steps per second of forward, backward and optimizer with nothing around them."""
    from unsupseg_cli.training.batch import Batch
    from unsupseg_cli.training.loop import Schedule, batch_views

    trainer.module.to(options.device)
    optimizer = trainer.optimizer()
    for group in optimizer.param_groups:  # some are factors on a schedule: weights would diverge
        group["lr"] *= trainer.rate(0.5) or 1.0
    trainer.begin(optimizer)
    schedule = Schedule(options.steps + _FIRST, batch_of(trainer), options.views, seed=0)
    for step in range(options.steps + _FIRST):
        if step == _FIRST:
            clock = time.perf_counter()
        batch = Batch.alone(step, batch_views(schedule, step))
        loss = trainer.losses(batch, trainer.read(batch))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    float(loss.detach())  # waits for the device
    return options.steps / (time.perf_counter() - clock)


def child(options: argparse.Namespace) -> None:
    measure: Callable[[Any, argparse.Namespace], float] = time_bare if options.bare else time_fit
    print(measure(trainer_of(options.method, options.views, options.side, options.device), options))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--side", type=int, default=28, help="rows and columns of tokens; even")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        child(options)
        return
    here = Path(__file__).resolve().parents[1]
    runs = {"this loop": (here, []), "the other checkout's": (options.other, []), "bare": (here, ["--bare"])}
    for method in METHODS:
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, (tree, extra) in runs.items():
                sizes = [f"--{key}={getattr(options, key)}" for key in ("steps", "views", "side", "device")]
                call = [sys.executable, __file__, str(options.other), "--method", method, *sizes, *extra]
                environment = {**os.environ, **_KEEP_MEMORY, "PYTHONPATH": str(tree)}
                done = subprocess.run(call, env=environment, check=True, capture_output=True, text=True)
                found[name].append(float(done.stdout.split()[-1]))
        for name, rates in found.items():
            ratios = [own / rate for own, rate in zip(found["this loop"], rates, strict=True)]
            print(
                f"{method}: {name} {statistics.median(rates):.2f} steps/s; this loop over it "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
