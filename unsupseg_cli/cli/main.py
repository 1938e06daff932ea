"""The entry point of the ``unsupseg`` command."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated

import typer

from unsupseg_cli.cli import (  # noqa: F401 - each import registers its command
    artifacts,
    backbones,
    classes,
    compare,
    datasets,
    demo,
    doctor,
    evaluate,
    export,
    extract,
    graph,
    methods,
    predict,
    pretrain,
    protocols,
    pseudolabel,
    recipes,
    refine,
    run,
    train,
)
from unsupseg_cli.cli.app import app

_PIPELINE = (
    "demo",
    "run",
    "extract",
    "graph",
    "pseudolabel",
    "train",
    "predict",
    "refine",
    "eval",
    "export",
    "pretrain",
)
app.registered_commands.sort(
    key=lambda one: _PIPELINE.index(one.name) if one.name in _PIPELINE else len(_PIPELINE)
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"unsupseg {version('unsupseg')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Discover the classes of your images and segment them, without labels."""


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _stop)  # a batch system's stop is as gentle as Ctrl-C
    app()
