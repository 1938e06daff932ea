"""The methods beside each other on one data set, with and without the CRF, in one process.

    python benchmarks/methods.py DATASET SPLIT [--fit train] [--seeds 0 1 2] [options of extract, e.g. --size 192]

k-means, spectral clustering, PriMaPs-EM, STEGO and PriMaPs-EM on its codes, TransFGU, context-aware clustering and
MaskDistill (its first and its final model), and what the recipe best does, fitted on --fit. SPLIT val is for choices;
the test split is scored once per table. Prints the folder of each evaluation as it is made, then a table; on stderr
every call of the command and how long it took. What is there already is not made again, so processes with other seeds
may run beside each other.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from typer.testing import CliRunner

from unsupseg_cli.cli.main import app


def call(command: str, *options: str | list[str]) -> str:
    """Run one command in this process and return what it prints: the path of its artifact."""
    arguments = [word for option in options for word in ([option] if isinstance(option, str) else option)]
    began = time.perf_counter()
    result = CliRunner().invoke(app, [*shlex.split(command), *arguments])
    if result.exit_code:
        sys.exit(f"{shlex.join([command, *arguments])}\n{result.stderr}")
    print(
        f"{time.perf_counter() - began:6.1f} s  {shlex.join([command, *arguments])}",
        file=sys.stderr,
        flush=True,
    )
    return result.stdout.strip()


def plan(options: argparse.Namespace, views: list[str]) -> Iterator[str]:
    """Make the models of every seed, one after the other."""
    images = ["--dataset", options.dataset, "--split", options.fit, *views]
    train = [*images, *backbone(options)]
    classes = ["--classes", str(options.classes)] if options.classes else []
    features = call("extract --keep patch,cls,pooled,attention,key,cls_query", train)
    proposals = call("pseudolabel --method primaps --features", features)
    for seed in options.seeds:
        shared = Shared(options, images, train, features, proposals, ["--seed", str(seed), *classes])
        for method in options.methods:
            yield from MODELS[method](shared)


def backbone(options: argparse.Namespace) -> list[str]:
    """Return the options of extract that a model brings with it."""
    given = {name: getattr(options, name) for name in ("backbone", "weights", "debias", "precision")}
    return [word for name, value in given.items() if value for word in (f"--{name}", value)]


class Shared(NamedTuple):
    """What the models of a seed are made from; ``train`` is ``images`` with the backbone that sees them."""

    options: argparse.Namespace
    images: list[str]
    train: list[str]
    features: str
    proposals: str
    seed: list[str]


def kmeans(shared: Shared, method: str = "kmeans") -> Iterator[str]:
    labels = call(f"pseudolabel --method {method} --features", shared.features, shared.seed)
    yield call("train --pseudolabels", labels, shared.seed)


def primaps(shared: Shared) -> Iterator[str]:
    yield call("train --method primaps --pseudolabels", shared.proposals, shared.seed)


def stego(shared: Shared) -> Iterator[str]:
    graph = call("graph --features", shared.features)
    training = f"train --method stego --set steps={shared.options.stego_steps} --features"
    model = call(training, shared.features, "--graph", graph, shared.seed)
    yield model
    masks = call("pseudolabel --method primaps --features", call("extract --model", model, shared.images))
    yield call("train --method primaps --pseudolabels", masks, shared.seed)


def transfgu(shared: Shared) -> Iterator[str]:
    foreground = ["--features", shared.features] if shared.options.objects else ["--foreground-share", "0"]
    anchors = call("extract --regions anchors --embed masked", foreground, shared.train)
    ground = f"--set background={str(shared.options.objects).lower()}"
    maps = call(
        f"pseudolabel --method transfgu --set mass=1.0 {ground} --features",
        shared.features,
        "--regions",
        anchors,
        shared.seed,
    )
    yield call("train --set cycles=1 --pseudolabels", maps, shared.seed)


def context(shared: Shared) -> Iterator[str]:
    pyramid = call(
        "extract --regions pyramid --keep cls,patch", shared.train, shlex.split(shared.options.pyramid)
    )
    guidance = call(
        "pseudolabel --method context --features", shared.features, "--regions", pyramid, shared.seed
    )
    yield call("train --pseudolabels", guidance, shared.seed)


def maskdistill(shared: Shared) -> Iterator[str]:
    ground = f"--set background={str(shared.options.objects).lower()}"
    part = f"pseudolabel --method maskdistill {ground} --part"
    masks = shared.proposals
    if shared.options.objects:
        masks = call("pseudolabel --method maskdistill --part masks --features", shared.features)
    clusters = call(f"{part} clusters --features", shared.features, "--pseudolabels", masks, shared.seed)
    training = f"train --method maskdistill {ground} --pseudolabels"
    initial = call(training, clusters, shared.seed)
    yield initial
    sure = call(f"{part} filter --pseudolabels", clusters, "--model", initial, shared.seed)
    yield call(training, sure, shared.seed)


def best(shared: Shared) -> Iterator[str]:
    masks = call("pseudolabel --method maskdistill --part masks --features", shared.features)
    choose = "pseudolabel --method spectral --set clusters=auto --set background=auto --features"
    labels = call(choose, shared.features, "--pseudolabels", masks, shared.seed)
    yield call("train --pseudolabels", labels, shared.seed)


MODELS = {
    "kmeans": kmeans,
    "spectral": lambda shared: kmeans(shared, "spectral"),
    "primaps": primaps,
    "stego": stego,
    "transfgu": transfgu,
    "context": context,
    "maskdistill": maskdistill,
    "best": best,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("split")
    parser.add_argument("--fit", default="train", help="split whose images the models are made of")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=MODELS, default=list(MODELS))
    for name in ("--backbone", "--weights", "--debias", "--precision"):
        parser.add_argument(name, help="of the features, as extract takes it")
    parser.add_argument("--classes", type=int, help="where the label space's number is not the one wanted")
    parser.add_argument(
        "--objects",
        action="store_true",
        help="images show objects before a background: MaskDistill takes its own masks, with class 0 as background, "
        "instead of PriMaPs' proposals",
    )
    parser.add_argument("--no-scores", action="store_true", help="make the models and print their folders")
    parser.add_argument("--stego-steps", type=int, default=1000)
    parser.add_argument("--pyramid", default="", help="options of the views of context-aware clustering")
    options, views = parser.parse_known_args()
    if options.no_scores:
        for model in plan(options, views):
            print(model, flush=True)
        return
    given = ["--dataset", options.dataset, "--split", options.split, *views, *backbone(options)]
    scored = call("extract --keep patch,cls", given)
    evaluations = []
    for model in plan(options, views):
        for crf in ("--no-crf", "--crf"):
            evaluations.append(call(f"eval {crf} --sheet 12 --model", model, "--features", scored))
            print(evaluations[-1], flush=True)
    print(call("compare", evaluations))


if __name__ == "__main__":
    main()
