"""``unsupseg methods list | show``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.core.config import Config
from unsupseg_cli.methods.registry import METHODS, get_method

methods = typer.Typer(help="The systems this tool unites.", no_args_is_help=True)
app.add_typer(methods, name="methods", rich_help_panel="Look up")


@methods.command("list")
def list_methods() -> None:
    """List the methods."""
    table = Table("method", "what it does", "commands", "paper", box=None)
    for method in METHODS.values():
        commands = [
            name for name, has in (("pseudolabel", method.pseudolabels), ("train", method.trains)) if has
        ]
        table.add_row(method.name, method.summary, ", ".join(commands), method.paper)
    Console(highlight=False, soft_wrap=True).print(table)


@methods.command("show")
def show(name: Annotated[str, typer.Argument(help="A method's name.")]) -> None:
    """Show the options of a method with default, bounds and source."""

    def action() -> None:
        method = get_method(name)
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"[bold]{method.name}[/bold]: {method.summary} ({method.paper})")
        for command, has in (("pseudolabel", method.pseudolabels), ("train", method.trains)):
            if has:
                console.print(method_table(name, command))

    run_guarded(action, verbose=False)


def method_table(name: str, command: str) -> Table:
    """Return the options that ``--set`` takes for a method under a command."""
    method = get_method(name)
    config: type[Config] = method.train_config() if command == "train" else method.pseudolabel_config()
    table = Table(
        "--set", "default", "bounds", "meaning", "source", title=f"{command} --method {name}", box=None
    )
    table.title_justify = "left"
    for key, field in config.model_fields.items():
        extra = field.json_schema_extra
        source = str(extra.get("source", "")) if isinstance(extra, dict) else ""
        table.add_row(key, str(field.default), _bounds(field.metadata), field.description or "", source)
    return table


def _bounds(metadata: list[Any]) -> str:
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    return " ".join(
        f"{sign}{getattr(one, name)}" for one in metadata for name, sign in signs if hasattr(one, name)
    )
