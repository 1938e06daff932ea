"""What each part of context-aware clustering brings: guidance and the four ablations beside k-means and PriMaPs-EM.

    python benchmarks/context_ablations.py WORKSPACE FEATURES REGIONS [--seeds 0 1 2] [--classes K] [--crf]
        [--steps 100] [--batch 4]

Fitted and scored on the views of FEATURES, whole images with labels; REGIONS are their pyramid, with patches.
Scores in per cent, over all pixels, over those of things and of stuff where the labels know them, and within 3 pixels
of a boundary of the labels (trimap); clusters are matched to classes once by the Hungarian rule. All rows of a seed but
PriMaPs-EM begin with the same k-means.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from boundaries import trimap
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli import Context, PseudolabelConfig, TrainConfig, Workspace, pseudolabel, train
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.images import reopen
from unsupseg_cli.contents.method_inputs import open_inputs
from unsupseg_cli.contents.model import open_model
from unsupseg_cli.contents.views import ViewImages
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.crf import refine_batch
from unsupseg_cli.data.images import image_size, read_image
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.methods.context.config import PseudolabelOptions, TrainOptions
from unsupseg_cli.methods.context.guidance import pack
from unsupseg_cli.methods.context.pseudolabel import ContextLabeller
from unsupseg_cli.methods.context.train import ContextTrainer
from unsupseg_cli.methods.interface import Inputs, MaskSet
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.matching import match
from unsupseg_cli.training.crops import whole
from unsupseg_cli.training.loop import Schedule, fit

Scores = Callable[[int], Tensor]
"""View -> scores (K, h, w), whose softmax are probabilities."""


class Judge:
    """Labels of the images of some features, and what scores of their views are worth."""

    def __init__(self, features: FeatureSet, crf: bool) -> None:
        data = features.artifact.manifest.data
        assert data is not None
        dataset = reopen(data)
        assert dataset.space is not None
        items = {item.key: item for item in dataset.items}
        self.items = [items[key] for key in features.views["key"]]
        self.truths = [read_truth(item, dataset.space, image_size(item.image)) for item in self.items]
        self.classes, self.kinds, self.crf = len(dataset.space.names), dataset.space.by_kind, crf

    def rate(self, scores: Scores, clusters: int) -> dict[str, float]:
        """Return accuracy and mIoU, of all pixels, of kinds and near boundaries, without and perhaps with the CRF."""
        found: dict[str, float] = {}
        for crf in (False, True) if self.crf else (False,):
            everywhere, near = (Confusion(clusters, self.classes) for _ in range(2))
            for view, truth in enumerate(self.truths):
                labels = self._labels(scores(view), view, crf)
                everywhere.update(labels, truth)
                near.update(labels, np.where(trimap(truth, 3), truth, VOID))
            assignment = match(everywhere.matrix)
            for name, one in (("", everywhere), ("trimap ", near)):
                computed = one.compute(assignment=assignment)
                found |= {
                    f"{name}accuracy{' crf' * crf}": computed.accuracy,
                    f"{name}mIoU{' crf' * crf}": computed.miou,
                }
            overall = everywhere.compute(assignment=assignment)
            for kind, members in self.kinds.items():
                found[f"{kind} mIoU{' crf' * crf}"] = overall.of(members)["miou"] or 0.0
        return found

    def _labels(self, scores: Tensor, view: int, crf: bool) -> NDArray[np.integer[Any]]:
        size = self.truths[view].shape
        large = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
        if not crf:
            return large.argmax(0).numpy()
        return refine_batch([large.log_softmax(0)], [read_image(self.items[view].image)])[0].argmax(0).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("features")
    parser.add_argument("regions")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crf", action="store_true")
    options = parser.parse_args()
    context = Context(Workspace(options.workspace))
    artifacts = {
        role: context.workspace.get(getattr(options, role), role) for role in ("features", "regions")
    }
    features = FeatureSet(artifacts["features"])
    judge = Judge(features, options.crf)
    classes, rows = options.classes or judge.classes, {}
    images = ViewImages(features, context)
    shown = [images([view])[0] for view in range(len(features))]

    def note(name: str, scores: Scores) -> None:
        rated = judge.rate(scores, classes)
        rows.setdefault(name, []).append(rated)
        print(
            f"{name}, seed {seed}: " + ", ".join(f"{key} {100 * value:.1f}" for key, value in rated.items()),
            flush=True,
        )

    for seed in options.seeds:
        note("PriMaPs-EM", _primaps(features, classes, seed, context))
        for name, chosen in (
            ("k-means", {"views": 0.0, "holistic": 0.0}),
            ("guidance, patches of views", {"holistic": 0.0}),
            ("guidance, holistic clusters", {"views": 0.0}),
            ("guidance", {}),
        ):
            part = PseudolabelOptions(**chosen)
            inputs = open_inputs(
                artifacts, part.needs(), context, torch.device("cpu"), classes=classes, seed=seed
            )
            labeller = ContextLabeller(part, inputs)
            labeller.fit()
            if name == "k-means":
                note(name, labeller._patches)
            else:
                guidance = [labeller.guidance(view) for view in range(len(features))]
                note(name, lambda view, maps=guidance: maps[view].clamp_min(1e-6).log())
        arrays = [pack(maps, PseudolabelOptions().top) for maps in guidance]
        masks = MaskSet([], [], labeller.state(), arrays=lambda view, found=arrays: found[view])
        for psg in (True, False):
            for cae in (True, False):
                trained = _train(options, features, masks, shown, classes, seed, psg, cae)
                note(f"psg={str(psg).lower()} cae={str(cae).lower()}", trained)
    print("\n| | " + " | ".join(rated for rated in rows["k-means"][0]) + " |")
    print("|---|" + "---|" * len(rows["k-means"][0]))
    for name, seeds in rows.items():
        cells = [[100 * one[key] for one in seeds] for key in seeds[0]]
        print(f"| {name} | " + " | ".join(map(spread, cells)) + " |")


def spread(values: list[float]) -> str:
    """Return mean and sample deviation."""
    mean = f"{np.mean(values):.1f}"
    return f"{mean} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _primaps(features: FeatureSet, classes: int, seed: int, context: Context) -> Scores:
    """Return the scores of views by PriMaPs-EM, whose artifacts lie in the workspace."""
    source = features.artifact.id
    masks = pseudolabel(PseudolabelConfig(method="primaps", features=source, sheet=0), context)
    config = TrainConfig(method="primaps", features=source, pseudolabels=masks.id, classes=classes, seed=seed)
    model = open_model(train(config, context), context, torch.device("cpu")).require_codes()

    @torch.no_grad()
    def scores(view: int) -> Tensor:
        codes = model.codes(features.tokens([view])[0][None])
        cells = model.score_codes(codes)[0]
        return model.log_softmax(cells.scores, cells.norm)

    return scores


def _train(
    options: argparse.Namespace,
    features: FeatureSet,
    masks: MaskSet,
    shown: list[NDArray[np.uint8]],
    classes: int,
    seed: int,
    psg: bool,
    cae: bool,
) -> Scores:
    """Train an ablation; return the scores of views by it."""
    given = Inputs(
        features,
        classes=classes,
        seed=seed,
        masks=masks,
        network=None,
        images=lambda views: [shown[view] for view in views],
    )
    part = TrainOptions(steps=options.steps, batch=options.batch, psg=psg, cae=cae)
    trainer = ContextTrainer(part, given)
    fit(
        trainer,
        Schedule(trainer.steps, trainer.batch, len(shown), seed),
        Fabric(accelerator="cpu", devices=1),
    )

    @torch.no_grad()
    def scores(view: int) -> Tensor:
        grid = [int(side) for side in features.grids[view]]
        looks = trainer._embed(trainer._read([view]), [grid], [whole(grid)], [])
        return trainer.network.scores(looks[0][None])[0]

    return scores


if __name__ == "__main__":
    main()
