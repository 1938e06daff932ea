"""Photos to label maps with each method, beside the sum of the parts that no way can leave out: time, memory, growth.

    python benchmarks/end_to_end.py IMAGES [--counts 500] [--methods kmeans spectral] [--backbone NAME --weights FILE]
        [--device cpu]

A chain is the commands from `extract` to `predict --features`, in one process that is new for each, start-up counted;
with --crf also `refine`. The parts are run right before it, in another new process: a bare timm loop over the views,
decoded before, k-means by faiss (5 runs of 50 iterations, on as many tokens as `--method kmeans` takes), and with --crf
pydensecrf if it is installed; without it `refine` is left out of the ratio. Peak memory is that of the process, and of
its largest worker. Several --counts, such as 250,500, tell how both grow.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

LABELS = "pseudolabel --method {method} {classes}"
MASKDISTILL = "pseudolabel --method maskdistill --part"
CHAINS = {
    "kmeans": ("extract", LABELS, "train"),
    "spectral": ("extract", LABELS, "train"),
    "primaps": ("extract", "pseudolabel --method primaps", "train {classes}"),
    "stego": ("extract", "graph", "train --method stego {classes}"),
    "transfgu": (
        "extract --keep patch,cls,attention",
        "extract --regions anchors --embed masked",
        LABELS,
        "train",
    ),
    "context": (
        "extract --keep patch,cls",
        "extract --regions pyramid --keep cls,patch",
        LABELS,
        "train",
    ),
    "maskdistill": (
        "extract --keep patch,key,cls_query",
        f"{MASKDISTILL} masks",
        f"{MASKDISTILL} clusters {{classes}}",
        "train",
        f"{MASKDISTILL} filter",
        "train",
    ),
}
MAPS = ("predict --no-overlay --keep {keep} --model {model} --features {features}",)
REFINE = "refine --predictions {predictions}"
MIB = 1024  # getrusage counts KiB


class Run(NamedTuple):
    """What one process did: seconds by the word that names them, and its peak memory and its largest worker's."""

    seconds: dict[str, float]
    peak: float
    worker: float

    @classmethod
    def ended(cls, seconds: dict[str, float]) -> Run:
        """Return what this process did until now."""
        own, workers = (
            resource.getrusage(who).ru_maxrss / MIB
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return cls(seconds, own, workers)


def run_chain(method: str, images: Path, options: argparse.Namespace) -> Run:
    """Run the commands of a method on a folder of images, in a workspace of its own."""
    start = time.perf_counter()
    from typer.testing import CliRunner

    from unsupseg_cli.cli.main import app

    network = ["--backbone", options.backbone, "--size", str(options.size)]
    network += ["--weights", str(options.weights)] if options.weights else []
    words = {"method": method, "classes": f"--classes {options.classes}"}
    words["keep"] = "scores" if options.crf else "labels"
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as workspace:
        for line in (*CHAINS[method], *MAPS, *([REFINE] if options.crf else [])):
            call = line.format(**words).split()
            call += ["--dataset", str(images), *network] if call[0] == "extract" else []
            call += options.training.split() if call[0] == "train" else []
            result = CliRunner().invoke(app, [*call, "--device", options.device, "--workspace", workspace])
            if result.exit_code:
                sys.exit(f"{' '.join(call)}\n{result.stderr}")
            made = {"extract": "features", "train": "model", "predict": "predictions"}.get(call[0])
            if made and "--regions" not in call:
                words[made] = result.stdout.strip()
            seconds[call[0]] = seconds.get(call[0], 0) + time.perf_counter() - start
            start = time.perf_counter()
    return Run.ended(seconds)


def run_parts(images: Path, options: argparse.Namespace) -> Run:
    """Run the bare loop, k-means by faiss, and with --crf pydensecrf where it is."""
    import faiss
    import numpy as np
    import torch
    import torch.nn.functional as F

    from unsupseg_cli.core.grouping import indices_by
    from unsupseg_cli.data.geometry import Geometry
    from unsupseg_cli.data.images import read_image
    from unsupseg_cli.inference.extraction import default_batch
    from unsupseg_cli.methods.kmeans.config import PseudolabelOptions
    from unsupseg_cli.models.backbone import load_backbone, resolve_precision

    device = torch.device(options.device)
    precision = resolve_precision("auto", device)
    backbone = load_backbone(options.backbone, options.weights).prepare(precision, device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    geometry = Geometry(kind="native", size=options.size or None)
    pictures = [read_image(path) for path in sorted(images.iterdir())]
    views = [
        geometry.render(image, geometry.views(*image.shape[:2], backbone.patch_size)[0]) for image in pictures
    ]
    tokens: list[torch.Tensor] = [torch.empty(0)] * len(views)
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        for members in indices_by(view.shape for view in views).values():
            for first in range(0, len(members), default_batch(device)):
                part = members[first : first + default_batch(device)]
                batch = torch.from_numpy(np.stack([views[index] for index in part])).to(device)
                batch = backbone.normalise(batch)
                found = backbone.model.forward_features(batch)[:, backbone.model.num_prefix_tokens :]
                for index, value in zip(part, found, strict=True):
                    tokens[index] = value.cpu()
    seconds["forward"] = time.perf_counter() - start

    chosen = PseudolabelOptions()
    every = torch.cat([value.reshape(-1, value.shape[-1]) for value in tokens]).float()
    sample = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[: chosen.sample]
    points = F.normalize(every[sample], dim=1).numpy()
    start = time.perf_counter()
    kmeans = faiss.Kmeans(
        points.shape[1],
        options.classes,
        niter=chosen.iterations,
        nredo=chosen.restarts,
        spherical=True,
        max_points_per_centroid=len(points),
    )
    kmeans.train(points)
    seconds["k-means"] = time.perf_counter() - start
    if options.crf and find_spec("pydensecrf"):
        centres = torch.from_numpy(kmeans.centroids)
        start = time.perf_counter()
        refine_with_pydensecrf(pictures, views, tokens, centres, backbone.patch_size)
        seconds["CRF"] = time.perf_counter() - start
    return Run.ended(seconds)


def refine_with_pydensecrf(
    pictures: Sequence[Any], views: Sequence[Any], tokens: Sequence[Any], centres: Any, patch: int
) -> None:
    """Refine the scores of the nearest centres at the size of the images, one process per core."""
    import torch.nn.functional as F

    from unsupseg_cli.core.threads import usable_cores
    from unsupseg_cli.crf.config import CRFConfig
    from unsupseg_cli.crf.pydensecrf_engine import refine_all

    def jobs() -> Any:
        for picture, view, value in zip(pictures, views, tokens, strict=True):
            scores = F.normalize(value.float(), dim=-1) @ centres.T
            grid = scores.T.view(1, len(centres), view.shape[0] // patch, view.shape[1] // patch)
            pixels = F.interpolate(grid, picture.shape[:2], mode="bilinear", align_corners=False)
            yield (2 * pixels[0]).log_softmax(0).numpy(), picture, CRFConfig(engine="pydensecrf")

    for _ in refine_all(jobs(), usable_cores()):
        pass


def alone(work: Any, *arguments: Any) -> Run:
    """Do some work in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        result: Run = pool.submit(work, *arguments).result()
        return result


def ratio(chain: Run, parts: Run) -> tuple[float, float, float]:
    """Return the seconds of a chain and of its parts, and their ratio, over what both did."""
    ours, bare = sum(chain.seconds.values()), sum(parts.seconds.values())
    compared = ours if "CRF" in parts.seconds else ours - chain.seconds.get("refine", 0)
    return ours, bare, compared / bare


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--counts", type=lambda text: [int(word) for word in text.split(",")], default=[500])
    parser.add_argument("--methods", nargs="+", choices=CHAINS, default=list(CHAINS))
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--classes", type=int, default=12)
    parser.add_argument("--training", default="", help="more options of train, such as '--set steps=100'")
    parser.add_argument("--crf", action="store_true")
    options = parser.parse_args()
    options.weights = options.weights and options.weights.absolute()
    paths = sorted(path for path in options.images.rglob("*") if path.suffix in {".jpg", ".jpeg", ".png"})
    if len(paths) < max(options.counts):
        sys.exit(
            f"There are {len(paths)} images in {options.images}, and {max(options.counts)} are asked for."
        )
    print("| images | method | s by command | s | parts, s | ratio | peak MiB, its worker's | parts, MiB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            for number, path in enumerate(paths[:: len(paths) // count][:count]):
                shutil.copy(path, Path(folder) / f"{number:05d}{path.suffix}")
            for method in options.methods:
                parts = alone(run_parts, Path(folder), options)
                chain = alone(run_chain, method, Path(folder), options)
                ours, bare, times = ratio(chain, parts)
                told, of_parts = (
                    ", ".join(f"{name} {value:.1f}" for name, value in run.seconds.items())
                    for run in (chain, parts)
                )
                print(
                    f"| {count} | {method} | {told} | {ours:.1f} | {bare:.1f} ({of_parts}) | {times:.2f} | "
                    f"{chain.peak:,.0f}, {chain.worker:,.0f} | {parts.peak:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        os.environ.setdefault("TQDM_DISABLE", "1")
        main()
