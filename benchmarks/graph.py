"""Nearest neighbours: time, peak memory and recall of both engines and of a plain blocked product.

    python benchmarks/graph.py [--rows 20000,250000] [--share 1] [--neighbors 30] [--engines plain,exact,faiss]

Descriptors of 384 channels that scatter around 500 centres, as images around scenes do. Each engine runs in a
process of its own; memory is what it adds to the peak after the descriptors are made. "plain" multiplies 512
rows at a time with all and takes torch.topk, ties as they come; its answer is the one that recall is measured
against (the share of its neighbours that an engine also gives).

With --share 0.04 only the first 4 % of the blocks of query rows are searched, among all rows: for collections
where an exact search takes hours. What comes before the first block (training faiss's lists) is timed apart,
and the time of all blocks is reckoned from the ones that were searched.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import faiss
import numpy as np
import torch

from unsupseg_cli.clustering.neighbours import nearest_neighbours
from unsupseg_cli.core.progress import Silent

DIM, CENTRES, NOISE = 384, 500, 1.0


def descriptors(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CENTRES, DIM, generator=generator)
    chosen = torch.randint(CENTRES, (rows,), generator=generator)
    values = NOISE * torch.randn(rows, DIM, generator=generator)
    values += centres[chosen]
    return torch.nn.functional.normalize(values, dim=1)


class Part(Silent):
    """A reporter that lets an engine search only the first share of its blocks, and times them apart."""

    def __init__(self, share: float) -> None:
        self.share, self.started, self.blocks, self.done = share, 0.0, 1, 1

    def track(
        self, items: Iterable[int], description: str, total: int | None = None, done: int = 0
    ) -> Iterator[int]:
        """Yield the first share of the blocks, timed from here on."""
        self.blocks = total or 1
        self.done = max(1, round(self.share * self.blocks))
        self.started = time.perf_counter()
        yield from islice(items, self.done)


def plain(values: torch.Tensor, neighbors: int, part: Part, block: int = 512) -> np.ndarray:
    found = torch.zeros(len(values), neighbors, dtype=torch.int64)
    starts = range(0, len(values), block)
    for start in part.track(starts, "plain", total=len(starts)):
        cosine = values[start : start + block] @ values.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -2
        found[start : start + block] = cosine.topk(neighbors, dim=1).indices
    return found.numpy()


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(engine: str, rows: int, neighbors: int, threads: int, share: float, folder: str) -> None:
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    values, part = descriptors(rows), Part(share)
    before, clock = peak(), time.perf_counter()
    if engine == "plain":
        found = plain(values, neighbors, part)
    else:
        found = nearest_neighbours(values, neighbors, engine=engine, reporter=part).indices
    end = time.perf_counter()
    np.savez(
        Path(folder) / f"{engine}-{rows}.npz",
        found=found,
        searched=rows * part.done // part.blocks,
        setup=part.started - clock,
        search=end - part.started,
        whole=part.started - clock + (end - part.started) * part.blocks / part.done,
        added=peak() - before,
    )


def recall(found: np.ndarray, truth: np.ndarray, searched: int) -> float:
    rows = np.random.default_rng(0).choice(searched, min(2000, searched), replace=False)
    return float(np.mean([len(np.intersect1d(found[row], truth[row])) / truth.shape[1] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="20000")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--neighbors", type=int, default=30)
    parser.add_argument("--engines", default="plain,exact,faiss")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print(
        "| rows | engine | rows searched | setup s | search s | all rows s | GiB added to the peak | recall |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for rows in map(int, options.rows.split(",")):
            truth, searched = None, rows
            for engine in options.engines.split(","):
                arguments = (engine, rows, options.neighbors, options.threads, options.share, folder)
                process = context.Process(target=measure, args=arguments)
                process.start()
                process.join()
                if process.exitcode:
                    print(
                        f"| {rows} | {engine} | failed, exit code {process.exitcode} | | | | | |", flush=True
                    )
                    continue
                with np.load(Path(folder) / f"{engine}-{rows}.npz") as result:
                    found, searched = result["found"], min(searched, int(result["searched"]))
                    truth = found if truth is None else truth
                    times = " | ".join(f"{float(result[name]):.1f}" for name in ("setup", "search", "whole"))
                    print(
                        f"| {rows:,} | {engine} | {int(result['searched']):,} | {times} | "
                        f"{float(result['added']):.2f} | {recall(found, truth, searched):.4f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
