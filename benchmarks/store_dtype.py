"""Tokens stored as float16 beside int8: room on disk, reading, and the scores of k-means, in one run.

    python benchmarks/store_dtype.py DATASET [--root DIR] [--backbone NAME --weights FILE] [--size 224] [--seeds 0 1 2]

k-means is fitted on the tokens of train (`pseudolabel`, `train`) and scored on those of val (`eval --features`), both
of one type. Reading is all tokens of train, best of three alternating rounds: read the ratio.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from unsupseg_cli import (
    Context,
    EvalConfig,
    ExtractConfig,
    PseudolabelConfig,
    TrainConfig,
    Workspace,
    evaluate,
    extract,
    pseudolabel,
    train,
)
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.core.options import StoreDtype
from unsupseg_cli.training.tokens import flat_batches

ROUNDS = 3


def score(
    context: Context, data: dict[str, Any], features: Artifact, seen: Artifact, seed: int
) -> dict[str, float]:
    """Return the scores of k-means that is fitted on some features and reads others, in per cent."""
    labels = pseudolabel(
        PseudolabelConfig(method="kmeans", features=features.id, seed=seed, sheet=0), context
    )
    model = train(TrainConfig(pseudolabels=labels.id, seed=seed), context)
    config = EvalConfig(**data, split="val", model=model.id, features=seen.id, sheet=0)
    summary = evaluate(config, context).manifest.summary
    return {name: 100 * summary[name] for name in ("miou", "accuracy")}


def reading_seconds(features: Artifact) -> float:
    """Return how long it takes to read all tokens once."""
    start = time.perf_counter()
    for _ in flat_batches(FeatureSet(features)):
        pass
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    data = {"dataset": options.dataset, "root": options.root}
    network = {"backbone": options.backbone, "weights": options.weights, "size": options.size}
    dtypes = get_args(StoreDtype)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Workspace(Path(folder)))
        features = {
            (dtype, split): extract(
                ExtractConfig(**data, **network, split=split, keep=("patch",), store_dtype=dtype), context
            )
            for dtype in dtypes
            for split in ("train", "val")
        }
        scores = {
            dtype: [
                score(context, data, features[dtype, "train"], features[dtype, "val"], seed)
                for seed in options.seeds
            ]
            for dtype in dtypes
        }
        rounds = [
            {dtype: reading_seconds(features[dtype, "train"]) for dtype in dtypes} for _ in range(ROUNDS)
        ]
    seeds = " ".join(map(str, options.seeds))
    print(
        f"| tokens | train, MB | reading, times float16 | mIoU, seeds {seeds} | mean mIoU | mean accuracy |"
    )
    print("|---|---|---|---|---|---|")
    for dtype in dtypes:
        size = sum(output.bytes for output in features[dtype, "train"].manifest.outputs.values()) / 1e6
        ratio = min(seconds[dtype] for seconds in rounds) / min(seconds["float16"] for seconds in rounds)
        found = [run["miou"] for run in scores[dtype]]
        accuracy = mean(run["accuracy"] for run in scores[dtype])
        each = ", ".join(f"{value:.2f}" for value in found)
        print(f"| {dtype} | {size:.1f} | {ratio:.2f} | {each} | {mean(found):.2f} | {accuracy:.2f} |")


if __name__ == "__main__":
    main()
