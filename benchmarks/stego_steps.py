"""STEGO's training steps from stored tokens beside the same loop with the frozen backbone in it.

    python benchmarks/stego_steps.py WORKSPACE FEATURES GRAPH [--steps 5] [--rounds 3] [--device cpu]

FEATURES and GRAPH are ids of the workspace. Rounds alternate between the two sources, since other work may load the
machine: read the ratio. Both loops draw the same images, points and dropout, so that their losses must agree.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.graph import read_neighbours
from unsupseg_cli.contents.network import live_source
from unsupseg_cli.core import seeds
from unsupseg_cli.methods.interface import Inputs, Trainer
from unsupseg_cli.methods.stego.config import TrainOptions
from unsupseg_cli.methods.stego.train import StegoTrainer
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.loop import Schedule, batch_views


class Loop:
    """The training loop of one token source, a step at a time."""

    def __init__(self, trainer: Trainer, views: int, device: torch.device) -> None:
        trainer.module.to(device)
        self.trainer, self.optimizer = trainer, trainer.optimizer()
        self.schedule = Schedule(steps=10**6, batch=trainer.batch, views=views, seed=0)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self) -> None:
        """Take the next step and note its loss and time."""
        step = len(self.losses)
        torch.manual_seed(seeds.stream(0, "step", step))
        self.trainer.module.train()
        start = time.perf_counter()
        batch = Batch.alone(step, batch_views(self.schedule, step))
        loss = self.trainer.losses(batch, self.trainer.read(batch))["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(float(loss.detach()))  # waits for the device
        self.seconds.append(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("features")
    parser.add_argument("graph")
    parser.add_argument("--steps", type=int, default=5, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    context = Context(Workspace(options.workspace))
    artifact = context.workspace.get(options.features, "features")
    features, device = FeatureSet(artifact), torch.device(options.device)
    neighbours = read_neighbours(context.workspace.get(options.graph, "graph"))
    live = live_source(features, context, device)
    loops = {}
    for name, network in (("stored", None), ("live", live)):
        inputs = Inputs(features, device=device, classes=11, seed=0, graph=neighbours, network=network)
        loops[name] = Loop(StegoTrainer(TrainOptions(), inputs), len(features), device)
    ratios = []
    for loop in loops.values():
        loop.step()  # the first step is not timed
    for _ in range(options.rounds):
        for loop in loops.values():
            for _ in range(options.steps):
                loop.step()
        spent = {name: sum(loop.seconds[-options.steps :]) for name, loop in loops.items()}
        ratios.append(spent["live"] / spent["stored"])
    pairs = zip(loops["stored"].losses, loops["live"].losses, strict=True)
    apart = max(abs(one - two) for one, two in pairs)
    print(f"{artifact.id}: {features.grids.prod(1).mean():.0f} tokens a view, {features.dim} channels")
    for name, loop in loops.items():
        print(
            f"{name}: {1 / statistics.median(loop.seconds[1:]):.2f} steps/s, last loss {loop.losses[-1]:.4f}"
        )
    print(
        f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f}), losses within {apart:.4f}"
    )


if __name__ == "__main__":
    main()
