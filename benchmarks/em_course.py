"""How PriMaPs-EM moves away from its start: scores and classes in use by epoch, on stored tokens.

    python benchmarks/em_course.py WORKSPACE FEATURES PSEUDOLABELS VAL_FEATURES [--init pca kmeans] [--epochs 50]
        [--every 10] [--resolution 0] [--count updates] [--seed 0]

The momentum prototypes are scored on the tokens of VAL_FEATURES (whole images with labels, no CRF). Of the training:
how many classes the masks of the last step were given, and the share of the largest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from unsupseg_cli import Context, Workspace
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.images import reopen
from unsupseg_cli.contents.masks import read_masks
from unsupseg_cli.data.images import image_size
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.methods.interface import Inputs
from unsupseg_cli.methods.primaps.config import TrainOptions
from unsupseg_cli.methods.primaps.objective import mode_assignment
from unsupseg_cli.methods.primaps.train import PrimapsTrainer
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.training.loop import Schedule, fit
from unsupseg_cli.training.tokens import MemorySource

_VIEWS = 100  # whose masks tell how many classes are in use


class Judge:
    """Tokens and labels of some images."""

    def __init__(self, features: FeatureSet) -> None:
        data = features.artifact.manifest.data
        assert data is not None
        dataset = reopen(data)
        assert dataset.space is not None
        items = {item.key: item for item in dataset.items}
        chosen = [items[key] for key in features.views["key"]]
        self.truths = [read_truth(item, dataset.space, image_size(item.image)) for item in chosen]
        self.tokens, self.classes = features.tokens(range(len(features))), len(dataset.space.names)

    def rate(self, prototypes: Tensor) -> str:
        """Return accuracy and mIoU of the nearest prototypes."""
        confusion = Confusion(len(prototypes), self.classes)
        for tokens, truth in zip(self.tokens, self.truths, strict=True):
            scores = (tokens @ prototypes.T).movedim(-1, 0)[None]
            large = F.interpolate(scores, size=truth.shape, mode="bilinear", align_corners=False)[0]
            confusion.update(large.argmax(0).numpy(), truth)
        scores_of = confusion.compute()
        return f"{100 * scores_of.accuracy:.1f} / {100 * scores_of.miou:.1f}"


class Followed(PrimapsTrainer):
    """PriMaPs-EM that prints a row of the table every few epochs."""

    judge: Judge
    every: int

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Update the momentum prototypes, and score them at the end of an epoch."""
        super().after_step(step, optimizer)
        per_epoch = self.steps // self.options.epochs
        if (step + 1) % (self.every * per_epoch) == 0:
            self.tell((step + 1) // per_epoch)

    @torch.no_grad()
    def tell(self, epoch: int) -> None:
        """Print scores, and which classes the masks of the first views are given."""
        views = range(min(_VIEWS, len(self.inputs.features.grids)))
        counts = np.zeros(self.inputs.classes, np.int64)
        for view in views:
            (tokens,) = self.inputs.features.tokens([view])
            ids = torch.from_numpy(self.labels[view])[None, None].float()
            ids = F.interpolate(ids, size=tokens.shape[:2], mode="nearest-exact")[:, 0].long()
            given = mode_assignment(ids, self.em.momentum(tokens[None]).argmax(1), len(counts))
            counts += np.bincount(given[given >= 0].numpy(), minlength=len(counts))
        used = f"{int((counts > 0.001 * counts.sum()).sum())} of {len(counts)} | {counts.max() / counts.sum():.0%}"
        print(
            f"| {self.options.init} | {epoch} | {self.judge.rate(self.em.prototypes())} | {used} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("features")
    parser.add_argument("pseudolabels")
    parser.add_argument("val")
    parser.add_argument("--init", nargs="+", default=["pca", "kmeans"])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--every", type=int, default=10, help="epochs between two scores")
    parser.add_argument("--resolution", type=int, default=0)
    parser.add_argument("--count", default="updates", help="of the moving average: updates or steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    context = Context(Workspace(options.workspace))
    features = FeatureSet(context.workspace.get(options.features, "features"))
    source = MemorySource(features.tokens(range(len(features))))
    masks = read_masks(context.workspace.get(options.pseudolabels, "pseudolabels"), context)
    judge = Judge(FeatureSet(context.workspace.get(options.val, "features")))
    print("| start | epoch | accuracy / mIoU | classes of the masks | largest |\n|---|---|---|---|---|")
    for init in options.init:
        chosen = TrainOptions(
            init=init, epochs=options.epochs, resolution=options.resolution, ema_count=options.count
        )
        inputs = Inputs(
            source, classes=judge.classes, seed=options.seed, masks=masks, network=None, model=None
        )
        trainer = Followed(chosen, inputs)
        trainer.judge, trainer.every = judge, options.every
        trainer.tell(0)
        schedule = Schedule(trainer.steps, trainer.batch, len(features), options.seed)
        fit(trainer, schedule, Fabric(accelerator="cpu", devices=1))


if __name__ == "__main__":
    main()
