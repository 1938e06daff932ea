"""PriMaPs-EM and STEGO as published and by our defaults, beside k-means, on one data set with labels.

    python benchmarks/fidelity.py DATASET [--root DIR] [--split val] [--size 322] [--backbone NAME --weights FILE]
        [--seeds 0 1 2] [--steps 1000] [--resolution 322] [--study] [--workspace DIR]

Fitted on train, scored on --split (choices on val, the test split once), protocol native, with and without the CRF.
Tokens are stored: the published augmentation of the M-step, which needs the backbone in the loop, is left out.
--study adds rows that tell what of EM as published costs how much: its start, its length, the sharpness of its scores.
Prints every score as it is made, then the table. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from unsupseg_cli import (
    Context,
    EvalConfig,
    ExtractConfig,
    GraphConfig,
    PseudolabelConfig,
    TrainConfig,
    Workspace,
    extract,
    graph,
    pseudolabel,
    train,
)
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.images import open_data
from unsupseg_cli.contents.model import open_model
from unsupseg_cli.crf import refine_batch
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.methods.primaps.config import PseudolabelOptions as Masks
from unsupseg_cli.methods.primaps.config import TrainOptions as Prototypes
from unsupseg_cli.methods.stego.config import TrainOptions as Stego
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.scores import Scores

PUBLISHED_MASKS = Masks(anchor="signed", center="none")
PUBLISHED_SHIFTS = (0.08, 0.02, 0.66)  # STEGO, train_config.yml: COCO-Stuff with a ViT-S

Rows = Iterator[tuple[str, Artifact]]


class Data:
    """The features of the training images, and what is made from them once for all seeds."""

    def __init__(self, options: argparse.Namespace, context: Context, classes: int) -> None:
        self.options, self.context = options, context
        images = {"dataset": options.dataset, "root": options.root, "workers": options.workers}
        self.of_images = images | {"split": "train", "size": options.size}
        network = {"backbone": options.backbone, "weights": options.weights}
        self.features = extract(ExtractConfig(**self.of_images, **network, keep=("patch", "pooled")), context)
        self.graph = graph(GraphConfig(features=self.features.id), context)
        self.classes = classes
        self.resolution = options.resolution or options.size

    def masks(self, features: Artifact, options: Masks) -> Artifact:
        """Return PriMaPs' masks in some features."""
        config = PseudolabelConfig(
            method="primaps", features=features.id, sheet=0, workers=self.options.workers
        )
        return pseudolabel(config, self.context, options=options)

    def em(self, seed: int, masks: Artifact, features: Artifact, options: Prototypes) -> Artifact:
        """Return PriMaPs-EM's model."""
        config = TrainConfig(
            method="primaps", features=features.id, pseudolabels=masks.id, classes=self.classes, seed=seed
        )
        return train(config, self.context, options=options)

    def stego(self, seed: int, options: Stego) -> Artifact:
        """Return STEGO's model."""
        inputs = {"features": self.features.id, "graph": self.graph.id}
        config = TrainConfig(method="stego", **inputs, classes=self.classes, seed=seed)
        return train(config, self.context, options=options)

    def codes(self, stego: Artifact) -> Artifact:
        """Return the codes of a STEGO model as features."""
        return extract(ExtractConfig(**self.of_images, model=stego.id), self.context)

    def kmeans(self, seed: int) -> Artifact:
        """Return the baseline."""
        clusters = PseudolabelConfig(
            method="kmeans", features=self.features.id, classes=self.classes, seed=seed, sheet=0
        )
        labels = pseudolabel(clusters, self.context)
        return train(TrainConfig(pseudolabels=labels.id, seed=seed), self.context)


class Judge:
    """Tokens, images and labels of the images that models are scored on: as `eval` does under the protocol native.

    The tokens are stored once (float16) instead of computed for each model.
    """

    def __init__(self, options: argparse.Namespace, context: Context) -> None:
        self.context = context
        images = {"dataset": options.dataset, "root": options.root, "workers": options.workers}
        network = {"backbone": options.backbone, "weights": options.weights}
        config = ExtractConfig(
            **images, **network, split=options.split, size=options.size, keep=("patch", "pooled")
        )
        self.features = FeatureSet(extract(config, context))
        dataset = open_data(EvalConfig(**images, split=options.split), context)
        assert dataset.space is not None
        items = {item.key: item for item in dataset.items}
        self.items = [items[key] for key in self.features.views["key"]]
        self.space, self.classes = dataset.space, len(dataset.space.names)

    def rate(self, model: Artifact) -> dict[bool, Scores]:
        """Return the scores without and with the CRF."""
        linear = open_model(model, self.context, torch.device("cpu")).require_codes()
        counts = {crf: Confusion(linear.outputs, self.classes) for crf in (False, True)}
        for view, item in enumerate(self.items):
            image = read_image(item.image)
            size = (image.shape[0], image.shape[1])
            truth = read_truth(item, self.space, size)
            with torch.inference_mode():
                codes = self.features.tokens([view])[0][None]
                for head in linear.feature_heads:
                    codes = head(codes)
                (scores,) = linear.score_codes(codes)
            counts[False].update(linear.labels(scores, *size), truth)
            refined = refine_batch([linear.log_probs(scores, *size)], [image])[0]
            counts[True].update(refined.argmax(0).numpy(), truth)
        return {crf: confusion.compute() for crf, confusion in counts.items()}


def rows(data: Data, seed: int) -> Rows:
    """Yield the models of the table."""
    published = Prototypes(init="pca", epochs=50, ema_count="updates", resolution=data.resolution, alpha=0.0)
    steps = data.options.steps
    yield "k-means", data.kmeans(seed)
    default_masks = data.masks(data.features, Masks())
    yield "PriMaPs-EM, by default", data.em(seed, default_masks, data.features, Prototypes())
    masks = data.masks(data.features, PUBLISHED_MASKS)
    yield "PriMaPs-EM, as published", data.em(seed, masks, data.features, published)
    stego = data.stego(seed, Stego(steps=steps))
    yield "STEGO, automatic shifts", stego
    codes = data.codes(stego)
    yield "STEGO + PriMaPs-EM, masks from the backbone", data.em(seed, default_masks, codes, Prototypes())
    yield (
        "STEGO + PriMaPs-EM, masks from the codes",
        data.em(seed, data.masks(codes, Masks()), codes, Prototypes()),
    )
    yield "STEGO, published shifts", data.stego(seed, Stego(steps=steps, shifts=PUBLISHED_SHIFTS))


def study(data: Data, seed: int) -> Rows:
    """Yield models that differ in one thing from EM as published, or from the one before."""
    masks = data.masks(data.features, PUBLISHED_MASKS)
    published = {"epochs": 50, "ema_count": "updates", "resolution": data.resolution, "alpha": 0.0}

    def em(**options: object) -> Artifact:
        return data.em(seed, masks, data.features, Prototypes(**{**published, **options}))

    yield "start of EM as published: PCA, cosine k-means", em(init="pca", epochs=1, ema_every=1000)
    yield "EM as published, 10 epochs", em(init="pca", epochs=10)
    yield "EM as published, from k-means", em(init="kmeans")
    yield "EM as published, from k-means, 10 epochs", em(init="kmeans", epochs=10)
    default = data.masks(data.features, Masks())
    yield (
        "EM as published on our masks",
        data.em(seed, default, data.features, Prototypes(init="pca", **published)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--size", type=int, default=322)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000, help="of STEGO")
    parser.add_argument("--resolution", type=int, help="of EM as published; default: --size")
    parser.add_argument("--study", action="store_true", help="parts of EM as published instead of the table")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--workspace", type=Path, default=Path("unsupseg-workspace"))
    options = parser.parse_args()
    context = Context(Workspace(options.workspace))
    judge = Judge(options, context)
    data = Data(options, context, judge.classes)
    found: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    made: Callable[[Data, int], Rows] = study if options.study else rows
    for seed in options.seeds:
        for name, model in made(data, seed):
            for crf, scores in judge.rate(model).items():
                found.setdefault((name, crf), []).append((scores.accuracy, scores.miou))
                pixels = scores.confusion.sum(0)
                print(
                    f"{options.dataset}, seed {seed}, {name}{', CRF' if crf else ''}: "
                    f"{100 * scores.accuracy:.2f} / {100 * scores.miou:.2f}; classes used "
                    f"{int((pixels > 0.001 * pixels.sum()).sum())}, largest {pixels.max() / pixels.sum():.0%}",
                    flush=True,
                )
    print(f"\n{options.dataset}, {options.split}, seeds {', '.join(map(str, options.seeds))}\n")
    print("| | accuracy | mIoU | with CRF: accuracy | mIoU |")
    print("|---|---|---|---|---|")
    for name in dict.fromkeys(name for name, _ in found):
        cells = [
            spread([pair[part] for pair in found[name, crf]]) for crf in (False, True) for part in (0, 1)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def spread(values: list[float]) -> str:
    """Return mean and deviation in per cent."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
