"""What a sample costs k-means in inertia and saves in time, and the memory of `--method kmeans` on many tokens.

    python benchmarks/kmeans_sample.py [--tokens 2000000] [--samples 20000,200000] [--memory 1000000,10000000]

Tokens are made up: 200 directions of unequal frequency with noise, so that 27 clusters do not fit them exactly. The
labeller of `pseudolabel --method kmeans` is fitted and labels all tokens of a source that makes them on the fly, each
number of --memory in a process of its own: on a sample, and by passes over all. Then it is fitted on samples, by passes
(sample=all) and on all of --tokens in memory; the inertia is that over all of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Sequence
from itertools import product
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.clustering.spherical import CHUNK, nearest
from unsupseg_cli.methods.interface import Inputs
from unsupseg_cli.methods.kmeans.config import PseudolabelOptions
from unsupseg_cli.methods.kmeans.pseudolabel import KMeansLabeller
from unsupseg_cli.training.tokens import MemorySource

GRID = (20, 20)
DIRECTIONS, NOISES = 200, 20_000


class MadeSource:
    """Tokens of many views of one grid, made when they are read: a direction and one of some noises each."""

    def __init__(self, tokens: int, dim: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._views, self.dim = max(1, tokens // (GRID[0] * GRID[1])), dim
        self._directions = F.normalize(torch.randn(DIRECTIONS, dim, generator=generator), dim=1)
        self._noises = torch.randn(NOISES, dim, generator=generator) * dim**-0.5
        self._frequency = 1 / torch.arange(1, DIRECTIONS + 1)

    @property
    def grids(self) -> NDArray[np.int64]:
        """Rows and columns of each view, (N, 2)."""
        return np.tile(np.array([GRID]), (self._views, 1))

    def tokens(self, views: Sequence[int]) -> list[Tensor]:
        """Return the tokens of some views, each (h, w, C) float32."""
        return [self._view(view) for view in views]

    def array(self, name: str, views: Sequence[int]) -> list[Tensor]:
        """Raise KeyError: there are patch tokens only."""
        raise KeyError(name)

    def _view(self, view: int) -> Tensor:
        generator, count = torch.Generator().manual_seed(view), GRID[0] * GRID[1]
        direction = torch.multinomial(self._frequency, count, replacement=True, generator=generator)
        noise = torch.randint(NOISES, (count,), generator=generator)
        return (self._directions[direction] + self._noises[noise]).view(*GRID, self.dim)


def inertia(tokens: Tensor, centroids: Tensor) -> float:
    """Return the mean of 1 - cosine of tokens (N, C) to their nearest centre."""
    total = sum(float((1 - nearest(block, centroids)[1]).sum()) for block in torch.split(tokens, CHUNK))
    return total / len(tokens)


def compare_samples(options: argparse.Namespace) -> None:
    """Print inertia and time of the centres of each sample, beside those of all tokens."""
    made = MadeSource(options.tokens, options.dim)
    tokens = torch.empty(len(made.grids), *GRID, options.dim)
    for view in range(len(tokens)):
        tokens[view] = made.tokens([view])[0]
    source, flat = MemorySource(list(tokens)), tokens.view(-1, options.dim)
    rows = []
    for sample in (*options.samples, "all", len(flat)):
        found, seconds = [], []
        for seed in options.seeds:
            chosen = PseudolabelOptions(sample=sample, restarts=options.restarts)
            labeller = KMeansLabeller(chosen, Inputs(source, classes=options.classes, seed=seed))
            start = time.perf_counter()
            labeller.fit()
            seconds.append(time.perf_counter() - start)
            found.append(inertia(flat, labeller.centroids))
        rows.append((sample, mean(found), max(found) - min(found), mean(seconds)))
    _, least, _, longest = rows[-1]
    print("| sample | inertia | range over seeds | above all, % | classes / sample, % | s | time of all |")
    print("|---|---|---|---|---|---|---|")
    for sample, value, spread, seconds in rows:
        share = "" if sample == "all" else f"{100 * options.classes / sample:.3f}"
        bound = f"{share} | {seconds:.1f} | {seconds / longest:.3f}"
        name = sample if sample == "all" else f"{sample:,}"
        print(f"| {name} | {value:.5f} | {spread:.5f} | {100 * (value / least - 1) + 0:.2f} | {bound} |")


def peak_of(count: int, classes: int, dim: int, sample: Any) -> None:
    """Fit and label tokens that are made on the fly, and print the peak memory of this process before and after."""
    torch.set_num_threads(1)
    source = MadeSource(count, dim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    labeller = KMeansLabeller(PseudolabelOptions(sample=sample), Inputs(source, classes=classes, seed=0))
    labeller.fit()
    fitted = time.perf_counter() - start
    fit_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for first in range(0, len(source.grids), 32):
        labeller.label(range(first, min(first + 32, len(source.grids))))
    labelled = time.perf_counter() - start - fitted
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = count * dim * 4 / 2**20
    print(
        f"| {count:,} | {sample} | {size:,.0f} | {before:.0f} | {fit_peak:.0f} | {peak:.0f} | {fitted:.0f} "
        f"| {labelled:.0f} |",
        flush=True,
    )


def numbers(text: str) -> list[int]:
    """Return the numbers of a list with commas; none of an empty one."""
    return [int(word) for word in text.split(",") if word]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--samples", type=numbers, default=[20_000, 200_000])
    parser.add_argument("--memory", type=numbers, default=[1_000_000, 10_000_000])
    parser.add_argument("--classes", type=int, default=27)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    print("| tokens | sample | their MiB | peak MiB before | of fitting | of labelling | fit, s | label, s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for count, sample in product(options.memory, (200_000, "all")):
        child = multiprocessing.get_context("spawn").Process(
            target=peak_of, args=(count, options.classes, options.dim, sample)
        )
        child.start()
        child.join()
    if options.samples:
        compare_samples(options)


if __name__ == "__main__":
    main()
