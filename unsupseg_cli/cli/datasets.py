"""datasets: The labelled sets whose official layout is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from unsupseg_cli.cli import completion
from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import result
from unsupseg_cli.cli.workspace import refuse_address
from unsupseg_cli.core.errors import UnsupsegError, UsageError, did_you_mean
from unsupseg_cli.core.words import are, counted
from unsupseg_cli.data.datasets import open_dataset, space_of
from unsupseg_cli.data.layouts import LAYOUTS

app = typer.Typer(help="The data sets whose layout is known.", no_args_is_help=True)


@app.command("list")
def list_datasets() -> None:
    """List the known data sets."""
    table = Table("name", "splits", "protocol", "what it is", box=None)
    for layout in LAYOUTS.values():
        table.add_row(layout.name, ", ".join(layout.splits), layout.protocol, layout.description)
    Console(highlight=False, soft_wrap=True).print(table)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A data set's name.", autocompletion=completion.datasets)],
) -> None:
    """Show layout, licence and classes of a data set."""

    def action() -> None:
        if name not in LAYOUTS:
            raise UsageError(f"Unknown data set '{name}'{did_you_mean(name, LAYOUTS)}")
        layout, space = LAYOUTS[name], space_of(name)
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"[bold]{name}[/bold]: {layout.description}")
        console.print(f"expects under --root: {layout.expects}\nlicence: {layout.licence}", markup=False)
        if layout.counts:
            counts = ", ".join(f"{split} {count:,}" for split, count in layout.counts.items())
            console.print(f"images: {counts}\nreference: {layout.citation}", markup=False)
        console.print(f"protocol: {layout.protocol}; void: {sorted(space.void)}", markup=False)
        table = Table("class", "name", "raw values", "colour", "kind", box=None)
        for index, label in enumerate(space.names):
            raw = ", ".join(str(value) for value, target in space.mapping.items() if target == index)
            table.add_row(str(index), label, raw, str(space.colors[index]), space.kinds[index])
        console.print(table)

    run_guarded(action)


@app.command("check")
def check(
    name: Annotated[
        str, typer.Argument(help="A data set's name, or a folder.", autocompletion=completion.datasets)
    ],
    root: Annotated[
        Path | None,
        typer.Option("--root", help="Where it lies.", show_default=False, callback=refuse_address),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Part; default: the first.")] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Folder of label images.", callback=refuse_address)
    ] = None,
    class_file: Annotated[
        Path | None, typer.Option("--class-file", help="Class names.", callback=refuse_address)
    ] = None,
    image_suffix: Annotated[
        str | None, typer.Option("--image-suffix", help="Ending of images' names, such as _image.")
    ] = None,
    label_suffix: Annotated[
        str | None, typer.Option("--label-suffix", help="Ending of labels' names, such as _label.")
    ] = None,
) -> None:
    """Read every image and label once: counts, sizes, label histogram, the first broken files."""

    def action() -> None:
        from unsupseg_cli.diagnosis.check import check_dataset

        dataset = open_dataset(
            name,
            root=root,
            split=split,
            labels=labels,
            class_file=class_file,
            image_suffix=image_suffix,
            label_suffix=label_suffix,
        )
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        report = check_dataset(dataset, lambda items: track(items, "check", console=console, transient=True))
        out = Console(highlight=False, soft_wrap=True)
        out.print(
            f"{dataset.name}/{dataset.split}: {counted(report.images, 'image')}, {report.labelled} with a label"
        )
        expected = LAYOUTS[dataset.name].counts.get(dataset.split) if dataset.name in LAYOUTS else None
        if expected not in (None, report.images):
            console.print(
                f"the official set has {expected:,} images: this is another selection or a part of it"
            )
        sizes = ", ".join(f"{w}x{h} ({n})" for (h, w), n in report.sizes.most_common(5))
        out.print(f"sizes: {sizes}{', ...' if len(report.sizes) > 5 else ''}")
        total = max(1, sum(report.pixels.values()))
        for label, count in report.pixels.items():
            out.print(f"  {label:24s} {100 * count / total:6.2f} % of pixels", markup=False)
        for remark in report.remarks:
            console.print(f"warning: {remark}", markup=False)
        if report.problems:
            for problem in report.problems[:10]:
                console.print(problem, markup=False)
            count = len(report.problems)
            broken = f"{counted(count, 'file')} {are(count)} broken; " + (
                "the first are" if count > 1 else "it is"
            )
            raise UnsupsegError(f"{broken} named above.")

    run_guarded(action)


@app.command("prepare")
def prepare(
    name: Annotated[str, typer.Argument(help="potsdam3: the one set whose official files need cutting.")],
    root: Annotated[
        Path, typer.Option("--root", help="Where the official download lies.", callback=refuse_address)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="New folder for what is made.", callback=refuse_address)
    ],
) -> None:
    """Cut the official tiles of Potsdam into images of 200x200, by a fixed rule and with a fixed split."""

    def action() -> None:
        if name != "potsdam3":
            raise UsageError(f"'{name}' needs no preparation: give its download as --root.")
        from unsupseg_cli.artifacts.outside import require_outside
        from unsupseg_cli.data.potsdam import prepare_potsdam

        require_outside(out)
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        counts = prepare_potsdam(
            root, out, lambda tiles: track(tiles, "cut", console=console, transient=True)
        )
        console.print(", ".join(f"{count:,} {split}" for split, count in counts.items()))
        result(str(out))

    run_guarded(action)
