"""TransFGU step by step beside k-means on the same features: one run, several seeds.

    python benchmarks/transfgu_ablation.py WORKSPACE FEATURES REGIONS [REGIONS ...] --classes K [--background]
        [--labels FOLDER --class-file FILE] [--restarts 10] [--seeds 3] [--cycles 2] [--steps 50] [--batch 4]
        [--lr 3e-4]

Of each REGIONS: the maps, a student of --steps steps without a teacher, and the last student of --cycles; classes by
the tokens of the features, matched to labels by the Hungarian rule over all views, which must show whole images.
Accuracy / mIoU in per cent and the classes used, mean and deviation over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from unsupseg_cli import Context, Workspace
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.images import reopen
from unsupseg_cli.contents.method_inputs import open_inputs
from unsupseg_cli.data.datasets import Dataset, open_dataset
from unsupseg_cli.data.images import image_size
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.methods.interface import Inputs, MaskSet
from unsupseg_cli.methods.transfgu.config import PseudolabelOptions, TrainOptions
from unsupseg_cli.methods.transfgu.pseudolabel import TransfguLabeller
from unsupseg_cli.methods.transfgu.train import TransfguTrainer
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.matching import match
from unsupseg_cli.training.loop import Schedule, fit

Score = tuple[float, float, float]
Maps = list[NDArray[np.int64]]


class Judge:
    """The labels of the views."""

    def __init__(self, features: FeatureSet, dataset: Dataset) -> None:
        assert dataset.space is not None
        items = {item.key: item for item in dataset.items}
        shown = [items[key] for key in features.views["key"]]
        self.truth = [read_truth(item, dataset.space, image_size(item.image)) for item in shown]
        self.names = len(dataset.space.names)

    def score(self, maps: Maps, classes: int) -> Score:
        """Match clusters to classes and score them; what has no cluster counts as an error."""
        confusion = Confusion(classes + 1, self.names)
        for found, truth in zip(maps, self.truth, strict=True):
            rows, columns = (np.arange(n) * m // n for n, m in zip(truth.shape, found.shape, strict=True))
            confusion.update(np.where(found < 0, classes, found)[np.ix_(rows, columns)], truth)
        result = confusion.compute(assignment=np.append(match(confusion.matrix[:classes]), -1))
        used = set(np.unique(np.concatenate([found.ravel() for found in maps])).tolist()) - {-1}
        return 100 * result.accuracy, 100 * result.miou, len(used)


def labelled(inputs: Inputs, options: PseudolabelOptions) -> MaskSet:
    labeller = TransfguLabeller(options, inputs)
    labeller.fit()
    views = range(len(inputs.features.grids))
    masks = [mask for first in views[::8] for mask in labeller.label(views[first : first + 8])]
    return MaskSet(
        [mask.labels for mask in masks],
        [mask.group for mask in masks],
        labeller.state(),
        arrays=lambda view: masks[view].arrays,
    )


class WatchedTrainer(TransfguTrainer):
    """Keeps what the first and the last student say of every view."""

    def __init__(self, options: TrainOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        self.said: list[Maps] = []

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """End the step as ever, and look at a student that is done."""
        super().after_step(step, optimizer)
        if step + 1 in (self.options.cycle_steps, self.steps):
            views = range(len(self.inputs.features.grids))
            tokens = [self.inputs.features.tokens([view])[0][None] for view in views]
            with torch.no_grad():
                self.said.append([self.teacher({"patch": one}).argmax(1)[0].numpy() for one in tokens])


def students(inputs: Inputs, options: TrainOptions) -> list[Maps]:
    """Train, and return what the first and the last student say."""
    trainer, views = WatchedTrainer(options, inputs), len(inputs.features.grids)
    fit(
        trainer,
        Schedule(trainer.steps, trainer.batch, views, inputs.seed),
        Fabric(accelerator="cpu", devices=1),
    )
    return trainer.said


def kmeans(features: FeatureSet, classes: int, seed: int) -> Maps:
    tokens = [array.float().numpy() for array in features.array("patch", range(len(features)))]
    flat = np.concatenate([array.reshape(-1, array.shape[-1]) for array in tokens])
    found = KMeans(classes, n_init=3, max_iter=50, random_state=seed).fit(flat[::3]).predict(flat)
    ends = np.cumsum([array.shape[0] * array.shape[1] for array in tokens])[:-1]
    return [part.reshape(array.shape[:2]) for part, array in zip(np.split(found, ends), tokens, strict=True)]


def row(name: str, scores: list[Score]) -> str:
    columns = list(zip(*scores, strict=True))
    spread = [
        f"{statistics.mean(c):.1f} ± {statistics.stdev(c) if len(c) > 1 else 0:.1f}" for c in columns[:2]
    ]
    return f"| {name} | {' / '.join(spread)} | {', '.join(str(used) for used in columns[2])} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("features")
    parser.add_argument("regions", nargs="+")
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--class-file", type=Path)
    parser.add_argument("--restarts", type=int, default=PseudolabelOptions().restarts)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cycles", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-4)
    options = parser.parse_args()
    context = Context(Workspace(options.workspace))
    artifact = context.workspace.get(options.features, "features")
    features = FeatureSet(artifact)
    data = artifact.manifest.data
    assert data is not None
    dataset = reopen(data)
    if options.labels:
        dataset = open_dataset(data.root, labels=options.labels, class_file=options.class_file)
    judge, classes, seeds = Judge(features, dataset), options.classes, range(options.seeds)
    print("| | accuracy / mIoU | classes used |\n|---|---|---|")
    print(
        row("k-means", [judge.score(kmeans(features, classes, seed), classes) for seed in seeds]), flush=True
    )
    labelling = PseudolabelOptions(mass=1.0, background=options.background, restarts=options.restarts)
    needs = replace(labelling.needs(), arrays=("patch",))
    training = TrainOptions(
        cycles=options.cycles, cycle_steps=options.steps, batch=options.batch, lr=options.lr
    )
    for name in options.regions:
        inputs = {"features": artifact, "regions": context.workspace.get(name, "regions")}
        scores: dict[str, list[Score]] = {}
        for seed in seeds:
            chosen = {"classes": classes, "seed": seed}
            opened = open_inputs(inputs, needs, context, torch.device("cpu"), **chosen)
            masks = labelled(opened, labelling)
            maps = [masks.classes(view) for view in range(len(features))]
            scores.setdefault("maps", []).append(judge.score(maps, classes))
            given = Inputs(opened.features, masks=masks, network=None, **chosen)
            for kind, said in zip(("one student", "last student"), students(given, training), strict=True):
                scores.setdefault(kind, []).append(judge.score(said, classes))
            print(f"{name}, seed {seed}: {[values[-1] for values in scores.values()]}", file=sys.stderr)
        for kind, values in scores.items():
            print(row(f"{name}: {kind}", values), flush=True)


if __name__ == "__main__":
    main()
