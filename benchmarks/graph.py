"""Nearest neighbours: time, peak memory and recall of the exact engine, faiss and a plain blocked product.

    python benchmarks/graph.py [--large] [--neighbors 30] [--engines exact,faiss,plain]

20,000 x 384 descriptors, with --large also 250,000 x 384. They scatter around 500 centres, as images around
scenes do. Each engine runs in a process of its own; memory is what it adds to the peak after the descriptors
are made. "plain" multiplies 4,096 rows at a time with all and takes torch.topk, ties as they come; its answer
is the one that recall is measured against (the share of its neighbours that an engine also gives).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from unsupseg_cli.clustering.neighbours import nearest_neighbours

DIM, CENTRES, NOISE = 384, 500, 1.0


def descriptors(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CENTRES, DIM, generator=generator)
    chosen = torch.randint(CENTRES, (rows,), generator=generator)
    values = NOISE * torch.randn(rows, DIM, generator=generator)
    values += centres[chosen]
    return torch.nn.functional.normalize(values, dim=1)


def plain(values: torch.Tensor, neighbors: int, block: int = 4096) -> np.ndarray:
    found = []
    for start in range(0, len(values), block):
        cosine = values[start : start + block] @ values.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -2
        found.append(cosine.topk(neighbors, dim=1).indices)
    return torch.cat(found).numpy()


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(engine: str, rows: int, neighbors: int, threads: int, folder: str) -> None:
    torch.set_num_threads(threads)
    values = descriptors(rows)
    before, clock = peak(), time.perf_counter()
    if engine == "plain":
        found = plain(values, neighbors)
    else:
        found = nearest_neighbours(values, neighbors, engine=engine).indices
    taken, added = time.perf_counter() - clock, peak() - before
    np.savez(Path(folder) / f"{engine}-{rows}.npz", found=found, taken=taken, added=added)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    rows = np.random.default_rng(0).choice(len(truth), min(2000, len(truth)), replace=False)
    return float(np.mean([len(np.intersect1d(found[row], truth[row])) / truth.shape[1] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--neighbors", type=int, default=30)
    parser.add_argument("--engines", default="plain,exact,faiss")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print("| rows | engine | seconds | GiB added to the peak | recall |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for rows in (20_000, 250_000) if options.large else (20_000,):
            truth = None
            for engine in options.engines.split(","):
                arguments = (engine, rows, options.neighbors, options.threads, folder)
                process = context.Process(target=measure, args=arguments)
                process.start()
                process.join()
                if process.exitcode:
                    print(f"| {rows} | {engine} | failed, exit code {process.exitcode} | | |", flush=True)
                    continue
                with np.load(Path(folder) / f"{engine}-{rows}.npz") as result:
                    found = result["found"]
                    truth = found if truth is None else truth
                    print(
                        f"| {rows} | {engine} | {float(result['taken']):.1f} | {float(result['added']):.2f} | "
                        f"{recall(found, truth):.4f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
