"""What STEGO's three kinds of pairs show it: cosines of tokens of an image with itself, its neighbours, and others.

    python benchmarks/stego_pairs.py OUT.png NAME=FEATURES:GRAPH [NAME=FEATURES:GRAPH ...] [--workspace DIR]

A panel for each pair of artifacts. STEGO pulls codes together where the cosine of tokens is above a shift, apart where
it is below, for each kind of pair: it learns classes where neighbours share more than any two images do. Prints of each
kind mean and deviation, and the share of pairs above the 99th percentile of the pairs of any two images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.graph import read_neighbours

PAIRS, CELLS = 400, 40  # pairs of images of each kind, and tokens of each image
KINDS = {"with itself": "#2a6fb0", "with a neighbour": "#d9822b", "with any other": "#b8bec6"}


def cosines(features: FeatureSet, neighbours: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
    """Return the cosines between tokens drawn from two images, by the kind of pair."""
    rng = np.random.default_rng(0)
    count = len(features)
    first = rng.integers(0, count, PAIRS)
    others = {
        "with itself": first,
        "with a neighbour": neighbours[first, rng.integers(0, neighbours.shape[1], PAIRS)],
        "with any other": (first + rng.integers(1, count, PAIRS)) % count,
    }
    return {
        kind: np.concatenate(
            [
                (_tokens(features, a, rng) @ _tokens(features, b, rng).T).numpy().ravel()
                for a, b in zip(first, second, strict=True)
            ]
        )
        for kind, second in others.items()
    }


def _tokens(features: FeatureSet, view: int, rng: np.random.Generator) -> torch.Tensor:
    flat = features.tokens([int(view)])[0].flatten(0, 1)
    return F.normalize(flat[torch.from_numpy(rng.integers(0, len(flat), CELLS))], dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("sets", nargs="+", metavar="NAME=FEATURES:GRAPH")
    parser.add_argument("--workspace", type=Path, default=Path("unsupseg-workspace"))
    options = parser.parse_args()
    workspace = Workspace(options.workspace)
    figure = Figure(figsize=(4.2 * len(options.sets), 2.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, given in zip(np.atleast_1d(figure.subplots(1, len(options.sets))), options.sets, strict=True):
        name, _, artifacts = given.partition("=")
        features, _, graph = artifacts.partition(":")
        neighbours = read_neighbours(workspace.get(graph, "graph"))
        found = cosines(FeatureSet(workspace.get(features, "features")), neighbours)
        high = np.percentile(found["with any other"], 99)
        for kind, values in found.items():
            axes.hist(
                values, 120, density=True, histtype="step", linewidth=1.6, color=KINDS[kind], label=kind
            )
            above = 100 * (values > high).mean()
            print(f"{name}: {kind}: {values.mean():.3f} ± {values.std():.3f}, {above:.1f} % above {high:.3f}")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xlabel("cosine of two tokens", fontsize=8)
        axes.set_yticks([])
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(options.out)


if __name__ == "__main__":
    main()
