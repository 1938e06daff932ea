"""Peak memory and seconds of the stages behind `extract` over growing collections: memory flat, time linear?

    python benchmarks/scale.py [--views 25000,50000,100000,200000] [--stages pseudolabel,train,graph,eval]
        [--engine exact] [--shares 1,2,4] [--side 4] [--channels 32] [--folder DIR]

The features are generated: views of SIDE x SIDE tokens (float16) that scatter around 8 directions, written as
`extract` writes them; those of 224 pixels by a ViT-S/14 are --side 16 --channels 384. Each stage runs in a process of
its own that has imported everything. Memory is what it adds at its peak (on Linux; looked at every 10 ms): what the
process owns, without mapped files, which the system takes back at will. Beside it stands what each view adds to that of
the row before with the same stage: 0 is flat. "eval" counts the stored pseudo-labels against generated label maps of as
many cells, as scoring does. The further stage
"images" is what `extract` knows of all images before it embeds the first: it lists generated pictures of 8 x 8 pixels,
reads their digests and their sizes.

"pseudolabel-all" moves the centres of k-means by passes over all tokens, "pseudolabel-memory" fits them on all tokens
in memory. --shares lets 1, 2, ... processes at once make "pseudolabel-all", each a share: CPU seconds (cores may be
fewer), of the process that took longest and of all, the parts of passes that each made, and whether the artifact is
that of the first row.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import pkgutil
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np

CLASSES = 8


def make_features(folder: Path, views: int, side: int, dim: int) -> None:
    """Write a features artifact of generated tokens."""
    from unsupseg_cli.artifacts.arrays import write_array
    from unsupseg_cli.artifacts.grids import GridWriter, views_per_block
    from unsupseg_cli.artifacts.identity import Identity
    from unsupseg_cli.artifacts.workspace import Workspace
    from unsupseg_cli.contents.features import write_views
    from unsupseg_cli.data.views import ViewTable

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES, dim)).astype(np.float32)
    pixels = 14 * side

    def work(draft: Any) -> dict[str, Any]:
        grids = np.full((views, 2), side, np.int64)
        block = views_per_block(grids, (dim,), np.float16)
        writer = GridWriter(draft.folder, "patch", grids, (dim,), np.float16, block)
        pooled = np.empty((views, dim), np.float32)
        for number, start in enumerate(range(0, views, block)):
            count = min(block, views - start)
            chosen = rng.integers(CLASSES, size=(count, side, side))
            tokens = centres[chosen] + 0.5 * rng.standard_normal((count, side, side, dim), np.float32)
            writer.write(number, tokens.astype(np.float16))
            pooled[start : start + count] = tokens.mean((1, 2))
        writer.close()
        write_array(draft.folder / "pooled", pooled)
        rows, none = np.arange(views), np.zeros(views, int)
        box = np.tile([0.0, 0, pixels, pixels], (views, 1))
        whole = np.full(views, pixels)
        table = ViewTable(rows, none, box, whole, whole, none > 0, none - 1, none)
        write_views(draft.folder, [f"{row // 1000:04d}/{row:08d}.jpg" for row in rows.tolist()], table)
        return {
            "images": views,
            "views": views,
            "backbone": "untrained",
            "patch_size": 14,
            "dim": dim,
            "weights_digest": "",
            "skipped": {},
        }

    geometry = {"geometry": "squash", "size": pixels, "filter": "bilinear", "flip": False, "ratios": [0.5]}
    backbone = {
        "backbone": "untrained",
        "layer": -1,
        "norm": True,
        "pos_embed": "original",
        "precision": "fp32",
    }
    config = {**geometry, **backbone, "views": views, "keep": ["patch", "pooled"]}
    Workspace(folder).produce(Identity("features", "extract", 2, f"views-{views}", config), work)


def images(context: Any, engine: str) -> None:
    from unsupseg_cli import ExtractConfig
    from unsupseg_cli.pipeline.extraction_input import layout_of
    from unsupseg_cli.pipeline.stage import settle
    from unsupseg_cli.stages.extract import STAGE

    folder = f"{context.workspace.root}-images/"
    config = ExtractConfig(dataset=folder, backbone="untrained", device="cpu", geometry="squash", size=56)
    call = settle(STAGE, config, context)
    STAGE.identify(call)
    layout_of(call)


def make_images(folder: Path, views: int) -> None:
    """Write pictures of one colour, of 8 x 8 pixels."""
    from PIL import Image

    for number in range(views):
        path = folder / f"{number // 1000:04d}" / f"{number:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, number // 256 % 256, number // 65536)).save(path)


def pseudolabel(context: Any, engine: Literal["exact", "faiss"]) -> None:
    from unsupseg_cli import PseudolabelConfig, pseudolabel
    from unsupseg_cli.methods.kmeans.config import PseudolabelOptions

    options = PseudolabelOptions(restarts=2, sample=50_000)
    pseudolabel(PseudolabelConfig(classes=CLASSES, sheet=0, device="cpu"), context, options=options)


def pseudolabel_all(context: Any, engine: str, shard: str | None = None) -> Any:
    from unsupseg_cli import PseudolabelConfig, pseudolabel
    from unsupseg_cli.methods.kmeans.config import PseudolabelOptions

    config = PseudolabelConfig(classes=CLASSES, sheet=0, device="cpu", shard=shard)
    return pseudolabel(config, context, options=PseudolabelOptions(restarts=2, sample="all"))


def pseudolabel_memory(context: Any, engine: str) -> None:
    from unsupseg_cli import PseudolabelConfig, pseudolabel
    from unsupseg_cli.methods.kmeans.config import PseudolabelOptions

    options = PseudolabelOptions(restarts=2, sample=10**12)
    pseudolabel(PseudolabelConfig(classes=CLASSES, sheet=0, device="cpu"), context, options=options)


def train(context: Any, engine: Literal["exact", "faiss"]) -> None:
    from unsupseg_cli import TrainConfig, train
    from unsupseg_cli.methods.kmeans.config import TrainOptions

    train(TrainConfig(device="cpu"), context, options=TrainOptions(steps=100, restarts=2, sample=50_000))


def graph(context: Any, engine: Literal["exact", "faiss"]) -> None:
    from unsupseg_cli import GraphConfig, graph

    graph(GraphConfig(device="cpu", engine=engine), context)


def evaluate(context: Any, engine: Literal["exact", "faiss"]) -> None:
    from unsupseg_cli.contents.masks import MaskTable
    from unsupseg_cli.metrics.confusion import Confusion

    masks = MaskTable(context.workspace.current("pseudolabels").path)
    confusion, rng = Confusion(CLASSES, CLASSES), np.random.default_rng(1)
    for view in range(len(masks)):
        label_map = masks.rows(view).group[masks.label_map(view)]
        confusion.update(label_map, rng.integers(CLASSES, size=label_map.shape))
    confusion.compute()


STAGES: dict[str, Callable[[Any, Any], None]] = {
    "images": images,
    "pseudolabel": pseudolabel,
    "pseudolabel-all": pseudolabel_all,
    "pseudolabel-memory": pseudolabel_memory,
    "train": train,
    "graph": graph,
    "eval": evaluate,
}


class Peak(threading.Thread):
    """Looks at the memory of this process every now and then."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mib, self.ended = owned(), threading.Event()

    def run(self) -> None:  # noqa: D102 - of threading.Thread
        while not self.ended.wait(0.01):
            self.mib = max(self.mib, owned())


def owned() -> float:
    """Return the MiB of memory that this process owns."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**10


def import_all() -> None:
    """Import what stages import while they work."""
    for room in ("contents", "clustering", "methods.kmeans", "stages", "training", "report"):
        package = importlib.import_module(f"unsupseg_cli.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def measure(stage: str, engine: str, folder: Path, views: int) -> None:
    """Run a stage and print its row."""
    from unsupseg_cli.artifacts.context import Context
    from unsupseg_cli.artifacts.workspace import Workspace

    import_all()
    before, start, peak = owned(), time.perf_counter(), Peak()
    peak.start()
    STAGES[stage](Context(Workspace(folder)), engine)
    seconds = time.perf_counter() - start
    peak.ended.set()
    added = peak.mib - before
    with (folder.parent / f"{stage}.txt").open("a+") as file:  # the rows of this stage so far
        file.seek(0)
        rows = [line.split() for line in file]
        more = 2**20 * (added - float(rows[-1][1])) / (views - int(rows[-1][0])) if rows else float("nan")
        file.write(f"{views} {added}\n")
    print(
        f"| {stage} | {views:,} | {seconds:.1f} | {1e6 * seconds / views:.0f} | {added:.0f} | {more:,.0f} |",
        flush=True,
    )


def make_share(folder: Path, shard: str, ready: Any, told: Any) -> None:
    """Make a share of the pseudo-labels when all processes are ready; tell what it took, and the artifact's digest."""
    from unsupseg_cli.artifacts.context import Context
    from unsupseg_cli.artifacts.workspace import Workspace
    from unsupseg_cli.training.all_tokens import _AllTokens

    import_all()
    make, parts = _AllTokens._pass, []

    def counting(fit: _AllTokens, centroids: Any, part: int) -> Any:
        parts.append(part)
        return make(fit, centroids, part)

    ready.wait()
    start = time.process_time()
    with patch.object(_AllTokens, "_pass", counting):
        artifact = pseudolabel_all(Context(Workspace(folder)), "", shard)
    told.put((time.process_time() - start, len(parts), artifact and artifact.manifest.digest))


def measure_shares(folder: Path, views: int, counts: list[int]) -> None:
    """Print a row for each number of processes that make the pseudo-labels together."""
    context, digests = multiprocessing.get_context("spawn"), []
    print("| views | processes | CPU s, longest | CPU s, all | parts of passes | as the first |")
    print("|---|---|---|---|---|---|")
    for count in counts:
        place = folder.with_name(f"{folder.name}-by-{count}")
        shutil.copytree(folder / "features", place / "features", copy_function=os.link)
        shutil.copy(folder / "current.json", place)
        ready, told = context.Barrier(count), context.SimpleQueue()
        processes = [
            context.Process(target=make_share, args=(place, f"{number}/{count}", ready, told))
            for number in range(1, count + 1)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            if process.exitcode:
                raise SystemExit(f"a share of {count}: exit code {process.exitcode}")
        rows = [told.get() for _ in range(count)]
        seconds, parts = [row[0] for row in rows], sorted(row[1] for row in rows)
        digests += [digest for *_, digest in rows if digest]
        same = "yes" if digests[-1] == digests[0] else "no"
        shown = " + ".join(map(str, parts))
        print(
            f"| {views:,} | {count} | {max(seconds):.1f} | {sum(seconds):.1f} | {shown} | {same} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", default="25000,50000,100000,200000")
    parser.add_argument("--stages", default="pseudolabel,train,graph,eval")
    parser.add_argument("--engine", default="exact", help="of the graph")
    parser.add_argument("--shares", help="numbers of processes")
    parser.add_argument("--side", type=int, default=4, help="tokens along the side of a view")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print("| stage | views | s | µs a view | MiB added | bytes for each further view |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for views in map(int, options.views.split(",")):
            place = Path(folder) / f"{views}"
            stages = [stage for stage in options.stages.split(",") if stage]
            for target, arguments in [
                (make_features, (place, views, options.side, options.channels)),
                *([(make_images, (Path(f"{place}-images"), views))] if "images" in stages else []),
                *((measure, (stage, options.engine, place, views)) for stage in stages),
            ]:
                process = context.Process(target=target, args=arguments)
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(f"{target.__name__} {arguments}: exit code {process.exitcode}")
            if options.shares:
                measure_shares(place, views, [int(count) for count in options.shares.split(",")])


if __name__ == "__main__":
    main()
