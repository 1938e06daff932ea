"""The dense CRF beside pydensecrf on CamVid frames: agreement with exact mean field, mIoU, images a second.

    python benchmarks/crf.py CAMVID_FOLDER [--frames 6] [--images 8] [--rounds 3] [--workers 2] [--predictions FOLDER]

CAMVID_FOLDER holds ``images/SPLIT/*`` and ``labels/SPLIT/*.png``. Scores are made two ways, on a grid of
cells of 8 pixels: the labels pooled to the grid with noise added, and k-means over colour, texture and place.
With --predictions (an artifact of ``predict --keep scores`` on a split) the scores of that model are refined too.
The throughput rounds alternate between the engines, since other work may load the machine: read the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sklearn.cluster import KMeans
from torch import Tensor

from unsupseg_cli.artifacts.arrays import RowReader
from unsupseg_cli.artifacts.manifest import read_manifest
from unsupseg_cli.crf import CRFConfig, lattice, refine_batch
from unsupseg_cli.crf.meanfield import refine
from unsupseg_cli.crf.pydensecrf_engine import refine_one
from unsupseg_cli.crf.scores import prepare
from unsupseg_cli.metrics.confusion import Confusion

CLASSES = 11
CELL = 8
Pixels = NDArray[np.uint8]


def load(path: Path, size: tuple[int, int] | None) -> tuple[Pixels, Pixels]:
    """Return a frame and its labels, resized to (width, height)."""
    image = Image.open(path).convert("RGB")
    label = Image.open(path.parents[2] / "labels" / path.parent.name / f"{path.stem}.png")
    if size:
        image, label = (
            image.resize(size, Image.Resampling.BILINEAR),
            label.resize(size, Image.Resampling.NEAREST),
        )
    return np.array(image), np.array(label)


def from_labels(label: Pixels, seed: int, classes: int = CLASSES) -> Tensor:
    """Noisy scores from pooled labels; classes beyond the labels' hold noise only."""
    truth = F.one_hot(torch.from_numpy(label).long().clamp(max=CLASSES), CLASSES + 1)[..., :CLASSES]
    grid = (-(-label.shape[0] // CELL), -(-label.shape[1] // CELL))
    pooled = F.adaptive_avg_pool2d(truth.permute(2, 0, 1).float()[None], grid)[0]
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(max(classes, CLASSES), *grid))).float()
    noise[:CLASSES] += 4 * pooled
    return torch.log_softmax(noise[:classes], 0)


def from_kmeans(image: Pixels, seed: int) -> Tensor:
    """Soft k-means over mean colour, its deviation and the place of every cell."""
    grid = (-(-image.shape[0] // CELL), -(-image.shape[1] // CELL))
    rgb = torch.from_numpy(image).permute(2, 0, 1).float()[None] / 255
    mean = F.adaptive_avg_pool2d(rgb, grid)[0]
    deviation = (F.adaptive_avg_pool2d(rgb**2, grid)[0] - mean**2).clamp_min(0).sqrt()
    place = torch.stack(torch.meshgrid(*(torch.linspace(0, 1, n) for n in grid), indexing="ij"))
    cells = torch.cat([mean, 3 * deviation, place]).flatten(1).T.numpy()
    cells = cells / cells.std(0)
    distance = KMeans(CLASSES, n_init=1, random_state=seed).fit(cells).transform(cells)
    return torch.log_softmax(torch.from_numpy(-(distance**2)).float(), 1).T.reshape(CLASSES, *grid)


def same(a: Tensor, b: Tensor) -> float:
    return 100 * (a.argmax(0) == b.argmax(0)).float().mean().item()


def miou(predictions: list[Tensor], labels: list[Pixels]) -> float:
    counts = np.zeros((CLASSES + 1, CLASSES), np.int64)
    for q, label in zip(predictions, labels, strict=True):
        np.add.at(counts, (label.flatten(), q.argmax(0).flatten().numpy()), 1)
    counts = counts[:CLASSES]  # void pixels leave
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return float(100 * (counts.diagonal()[union > 0] / union[union > 0]).mean())


def both(scores: list[Tensor], images: list[Pixels], workers: int) -> tuple[list[Tensor], list[Tensor]]:
    ours, theirs = CRFConfig(engine="torch"), CRFConfig(engine="pydensecrf")
    return refine_batch(scores, images, ours, workers), refine_batch(scores, images, theirs, workers)


def against_exact(paths: list[Path]) -> None:
    print("\n## Agreement with exact mean field, 96x96, 11 classes, % of pixels\n")
    print("| scores | frame | before | torch | pydensecrf |\n|---|---|---|---|---|")
    rows = []
    for number, path in enumerate(paths):
        image, label = load(path, (96, 96))
        for kind, scores in (("labels", from_labels(label, number)), ("k-means", from_kmeans(image, number))):
            exact = refine(scores, image, CRFConfig(engine="exact"))
            ours, theirs = both([scores], [image], 1)
            before = refine(scores, image, CRFConfig(iterations=0))
            rows.append([same(q, exact) for q in (before, ours[0], theirs[0])])
            print(f"| {kind} | {path.stem} | " + " | ".join(f"{x:.2f}" for x in rows[-1]) + " |", flush=True)
    print("| mean | | " + " | ".join(f"{x:.2f}" for x in np.mean(rows, 0)) + " |")
    print("| lowest | | " + " | ".join(f"{x:.2f}" for x in np.min(rows, 0)) + " |")


def between_engines(paths: list[Path], workers: int) -> None:
    print("\n## The engines beside each other, scores from labels, 11 classes\n")
    print("| size | agreement, mean | lowest | mIoU before | torch | pydensecrf |\n|---|---|---|---|---|---|")
    for name, size in (("320x320", (320, 320)), ("native", None)):
        images, labels = zip(*(load(path, size) for path in paths), strict=True)
        scores = [from_labels(label, number) for number, label in enumerate(labels)]
        ours, theirs = both(scores, list(images), workers)
        before = refine_batch(scores, images, CRFConfig(iterations=0), workers)
        agreement = [same(a, b) for a, b in zip(ours, theirs, strict=True)]
        values = [statistics.mean(agreement), min(agreement)]
        values += [miou(q, list(labels)) for q in (before, ours, theirs)]
        print(f"| {name} | " + " | ".join(f"{x:.2f}" for x in values) + " |", flush=True)


def soft_scores(array: Path) -> Tensor:
    """Read log-probabilities (K, h, w)."""
    reader = RowReader(array)
    return torch.from_numpy(reader.rows(0, len(reader))).float().log_softmax(0)


def on_model_scores(camvid: Path, predictions: Path, count: int, workers: int) -> None:
    """Refine a model's own scores; clusters are matched to classes once, on the unrefined maps of all frames."""
    folders = sorted(path.parent for path in (predictions / "scores").rglob("zarr.json"))
    chosen = [folders[len(folders) * i // count] for i in range(min(count, len(folders)))]
    data = read_manifest(predictions).data
    if data is None:
        raise SystemExit(f"{predictions} names no data set: predict with --dataset camvid.")
    paths = [camvid / "images" / data.split / one.relative_to(predictions / "scores") for one in chosen]
    scores = [soft_scores(one) for one in chosen]
    print(f"\n## Scores of {predictions.name}, {len(paths)} frames\n")
    print("Agreement with exact mean field at 96x96:\n\n| | before | torch | pydensecrf |\n|---|---|---|---|")
    rows = []
    for path, one in zip(paths, scores, strict=True):
        image, _ = load(path, (96, 96))
        exact = refine(one, image, CRFConfig(engine="exact"))
        ours, theirs = both([one], [image], 1)
        rows.append([same(q, exact) for q in (refine(one, image, CRFConfig(iterations=0)), *ours, *theirs)])
    for name, values in (("mean", np.mean(rows, 0)), ("lowest", np.min(rows, 0))):
        print(f"| {name} | " + " | ".join(f"{x:.2f}" for x in values) + " |")
    print(
        "\n| size | agreement, mean | lowest | mIoU before | torch | pydensecrf |\n|---|---|---|---|---|---|"
    )
    for name, size in (("320x320", (320, 320)), ("native", None)):
        images, labels = zip(*(load(path, size) for path in paths), strict=True)
        ours, theirs = both(scores, list(images), workers)
        before = refine_batch(scores, images, CRFConfig(iterations=0), workers)
        assignment = None
        values = []
        for maps in (before, ours, theirs):
            confusion = Confusion(len(scores[0]), CLASSES)
            for q, label in zip(maps, labels, strict=True):
                confusion.update(q.argmax(0).numpy(), label.astype(np.int64))
            found = confusion.compute(assignment=assignment)
            assignment = found.assignment
            values.append(100 * found.miou)
        agreement = [same(a, b) for a, b in zip(ours, theirs, strict=True)]
        row = [statistics.mean(agreement), min(agreement), *values]
        print(f"| {name} | " + " | ".join(f"{x:.2f}" for x in row) + " |", flush=True)


def throughput(paths: list[Path], rounds: int, workers: int) -> None:
    print(
        f"\n## Images a second, 320x320, {len(paths)} frames, {workers} workers, median of {rounds} rounds\n"
    )
    print("| labels | torch | pydensecrf, process pool | ratio, median (lowest-highest) |\n|---|---|---|---|")
    frames = [load(path, (320, 320)) for path in paths]
    images = [image for image, _ in frames]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for classes in (27, 6):
            scores = [from_labels(label, number, classes) for number, (_, label) in enumerate(frames)]
            pooled(pool, scores[:workers], images[:workers])  # the start of the processes is not timed
            refine_batch(scores[:workers], images[:workers], workers=workers)
            ours, theirs = [], []
            for _ in range(rounds):
                ours.append(len(images) / seconds(partial(refine_batch, scores, images, workers=workers)))
                theirs.append(len(images) / seconds(partial(pooled, pool, scores, images)))
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            print(
                f"| {classes} | {statistics.median(ours):.2f} | {statistics.median(theirs):.2f} "
                f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |",
                flush=True,
            )


def pooled(
    pool: ProcessPoolExecutor, scores: list[Tensor], images: list[Pixels]
) -> list[NDArray[np.float32]]:
    """Run pydensecrf in processes that are up already."""
    config = CRFConfig(engine="pydensecrf")
    jobs = ((s.numpy(), i.numpy(), config) for s, i in map(prepare, scores, images))
    return list(pool.map(refine_one, jobs))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("camvid", type=Path)
    parser.add_argument("--frames", type=int, default=6, help="frames of the agreement tables; 0 skips them")
    parser.add_argument("--images", type=int, default=8, help="frames timed; 0 skips it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--predictions", type=Path, help="predictions with --keep scores: refine these as well"
    )
    parser.add_argument(
        "--least-mass", type=float, default=lattice.LEAST_MASS, help="mass that keeps a vertex of the lattice"
    )
    options = parser.parse_args()
    lattice.LEAST_MASS = options.least_mass
    found = sorted((options.camvid / "images").glob("*/*"))

    def spread(count: int) -> list[Path]:
        return [found[len(found) * i // count] for i in range(count)]

    if options.frames:
        against_exact(spread(options.frames))
        between_engines(spread(options.frames), options.workers)
    if options.predictions:
        on_model_scores(options.camvid, options.predictions, 4 * options.frames, options.workers)
    if options.images:
        throughput(spread(options.images), options.rounds, options.workers)


if __name__ == "__main__":
    main()
