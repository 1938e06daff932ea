"""How well `tune`'s criterion ranks models of one data set, beside their mIoU and beside other label-free figures.

    python benchmarks/label_free.py DATASET --classes K --weights FILE [--root DIR] [--size 224] [--crf]

Sixteen models or more, fitted on train: k-means, spectral clusters, PriMaPs-EM and what the recipe `best` does, each on
the tokens of `tiny` and of DINOv2 ViT-S/14 (`--weights`) as they are, without 20 directions of their place, and of an
earlier block. Each is scored on val by its stored tokens. Prints the models by the criterion, then the rank correlation
(Spearman) of each figure with mIoU over them, and the share of the best mIoU that the first of each ranking has.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from methods import call
from scipy.stats import spearmanr

FIGURES = ("criterion", "contrast", "agreement", "told_by_place")
CONDITIONS = {
    "plain": {"debias": 0},
    "debiased": {"debias": 20},
    "earlier": {"debias": 0, "layer": -5},
    "tiny": {"backbone": "tiny"},
}
CLUSTERS = {
    "kmeans": [{"command": "pseudolabel", "id": "clusters", "method": "kmeans"}],
    "spectral": [{"command": "pseudolabel", "id": "clusters", "method": "spectral", "set": {"sample": 8000}}],
    "best": [
        {"command": "pseudolabel", "id": "objects", "method": "maskdistill", "part": "masks"},
        {
            "command": "pseudolabel",
            "id": "clusters",
            "method": "spectral",
            "set": {"clusters": "auto", "background": "auto", "sample": 8000},
        },
    ],
    "primaps": [{"command": "pseudolabel", "method": "primaps"}],
}


def recipe(method: str, condition: str, options: argparse.Namespace) -> str:
    """Return a recipe as TOML."""
    extract: dict[str, Any] = {"command": "extract", "split": "train", "size": options.size}
    extract |= {"keep": ["patch", "cls", "key", "cls_query"], "backbone": "dinov2_vits14"}
    extract |= {"weights": str(options.weights), "precision": "fp32", **CONDITIONS[condition]}
    if extract["backbone"] == "tiny":
        del extract["weights"], extract["precision"]
    train: dict[str, Any] = {"command": "train"}
    stages = [extract, *({**stage} for stage in CLUSTERS[method]), train]
    (train if method == "primaps" else stages[-2])["classes"] = options.classes
    lines = [f'name = "{method}-{condition}"', 'description = ""']
    for stage in stages:
        lines += ["[[stage]]", *(f"{key} = {_toml(value)}" for key, value in stage.items())]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(entry)}" for key, entry in value.items()) + " }"
    return json.dumps(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("--root")
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--weights", type=lambda name: Path(name).resolve(), required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--crf", action="store_true", help="score with the CRF too")
    options = parser.parse_args()
    data = ["--dataset", options.dataset, *(["--root", options.root] if options.root else [])]
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for condition in CONDITIONS:
            for method in CLUSTERS:
                files.append(Path(folder) / f"{method}-{condition}.toml")
                files[-1].write_text(recipe(method, condition, options))
        tuning = Path(call("tune --quiet", [str(file) for file in files], data))
    rows = json.loads((tuning / "manifest.json").read_text())["summary"]["candidates"]
    scored = {condition: _val(condition, data, options) for condition in CONDITIONS}
    for row in rows:
        features = scored[row["name"].rpartition("-")[2]]
        for name in ("no-crf", "crf") if options.crf else ("no-crf",):
            evaluation = call(f"eval --{name} --sheet 0 --model", row["model"], "--features", features)
            row[name] = json.loads((Path(evaluation) / "scores.json").read_text())["miou"]
    _report(rows)


def _val(condition: str, data: list[str], options: argparse.Namespace) -> str:
    """Return the features of val that models of a condition are scored by."""
    given = {
        "size": options.size,
        "backbone": "dinov2_vits14",
        "weights": options.weights,
        "precision": "fp32",
    }
    given |= CONDITIONS[condition]
    if given["backbone"] == "tiny":
        del given["weights"], given["precision"]
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return call("extract --keep patch,cls --split val", data, words)


def _report(rows: list[dict[str, Any]]) -> None:
    for row in sorted(rows, key=lambda row: row["rank"]):
        figures = " ".join(f"{name} {row[name]:.3f}" for name in FIGURES)
        scores = " / ".join(f"{100 * row[name]:.2f}" for name in ("no-crf", "crf") if name in row)
        print(f"{row['rank']:3}  {row['name']:20} {figures}  mIoU {scores}")
    miou = np.array([row["no-crf"] for row in rows])
    print(
        f"{len(rows)} models, mIoU {100 * miou.min():.2f} to {100 * miou.max():.2f}, mean {100 * miou.mean():.2f}"
    )
    for name in FIGURES:
        values = np.array([row[name] for row in rows])
        chosen = miou[values.argmax()]
        print(
            f"{name:10} rank correlation {spearmanr(values, miou)[0]:5.2f}, chosen {100 * chosen:.2f} "
            f"= {chosen / miou.max():.2f} of the best"
        )


if __name__ == "__main__":
    main()
