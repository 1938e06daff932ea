"""Scoring a model by stored tokens beside running its backbone: seconds of each, and how far the scores agree.

    python benchmarks/scoring.py DATASET [--root DIR] [--split val] [--backbone NAME --weights FILE] [--size 224]

k-means is fitted on the split, whose features hold mirror images too. Rounds alternate between the two ways, since
other work may load the machine: read the ratio. Start-up is left out: all runs are of one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from unsupseg_cli import Context, EvalConfig, ExtractConfig, TrainConfig, Workspace, evaluate, extract, train

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mirror image": {"flip": True},
    "CRF": {"crf": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    data = {"dataset": options.dataset, "root": options.root, "split": options.split}
    network = {"backbone": options.backbone, "weights": options.weights, "size": options.size}
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Workspace(Path(folder)), force=True)
        features = extract(ExtractConfig(**data, **network, flip=True, keep=("patch",)), context)
        model = train(TrainConfig(method="kmeans", classes=options.classes, features=features.id), context)
        print(
            "| | backbone, s | stored tokens, s | ratio | most difference of scores |\n|---|---|---|---|---|"
        )
        for name, setting in SETTINGS.items():
            ways = {"direct": {}, "stored": {"features": features.id}}
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            scores: dict[str, dict[str, Any]] = {}
            for _ in range(options.rounds):
                for way, source in ways.items():
                    start = time.perf_counter()
                    config = EvalConfig(**data, model=model.id, sheet=0, **setting, **source)
                    scores[way] = evaluate(config, context).manifest.summary
                    seconds[way].append(time.perf_counter() - start)
            direct, stored = (statistics.median(seconds[way]) for way in ways)
            difference = max(
                abs(scores["direct"][score] - scores["stored"][score]) for score in ("miou", "accuracy")
            )
            print(f"| {name} | {direct:.1f} | {stored:.1f} | {direct / stored:.1f} | {difference:.5f} |")


if __name__ == "__main__":
    main()
