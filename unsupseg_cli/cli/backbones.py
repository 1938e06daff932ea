"""backbones: The frozen feature extractors."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from unsupseg_cli.cli import completion
from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.core.errors import UsageError, did_you_mean
from unsupseg_cli.models.backbones import ALIASES

app = typer.Typer(help="The frozen feature extractors.", no_args_is_help=True)


@app.command("list")
def list_backbones() -> None:
    """List the backbones by name; `timm:NAME` takes any ViT of timm."""
    table = Table("name", "patch", "dim", "what it is", box=None)
    for name, row in ALIASES.items():
        table.add_row(name, str(row.patch_size), str(row.dim), row.description)
    Console(highlight=False, soft_wrap=True).print(table)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A backbone's name.", autocompletion=completion.backbones)],
) -> None:
    """Show one backbone: architecture, weights, licence."""

    def action() -> None:
        if name not in ALIASES:
            raise UsageError(f"Unknown backbone '{name}'{did_you_mean(name, ALIASES)}")
        table = Table(box=None, show_header=False)
        for key, value in vars(ALIASES[name]).items():
            table.add_row(key.replace("_", " "), str(value))
        Console(highlight=False, soft_wrap=True).print(table)

    run_guarded(action)
