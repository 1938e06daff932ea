"""methods: The systems that this tool unites, and those of installed plug-ins."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from unsupseg_cli.cli import completion
from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import TerminalReporter, print_table
from unsupseg_cli.cli.deviations import page
from unsupseg_cli.cli.tables import method_tables
from unsupseg_cli.methods.declaration import Method
from unsupseg_cli.methods.registry import BUNDLED, broken_plugins, get_method, usable_methods

app = typer.Typer(help="The systems this tool unites.", no_args_is_help=True)


@app.command("list")
def list_methods() -> None:
    """List the methods."""
    table = Table("method", "what it does", "commands", "paper", "package", box=None)
    for method in usable_methods():
        table.add_row(method.name, method.summary, ", ".join(_commands(method)), method.paper, method.package)
    print_table(table)
    for problem in broken_plugins():
        TerminalReporter().warn(problem)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A method's name.", autocompletion=completion.methods)],
) -> None:
    """Show the options of a method with default, bounds and source, and where it leaves what was published."""

    def action() -> None:
        method = get_method(name)
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"[bold]{method.name}[/bold]: {method.summary} ({method.paper or method.package})")
        for command in dict.fromkeys(text.split()[0] for text in _commands(method)):
            for table in method_tables(name, command):
                console.print(table)
        if method.deviations:
            console.print(_deviations(method))

    run_guarded(action)


@app.command("deviations")
def print_deviations() -> None:
    """Print what the bundled methods do otherwise than published, as Markdown."""
    run_guarded(lambda: print(page(map(get_method, BUNDLED)), end=""))


def _deviations(method: Method) -> Table:
    """Return what a method does otherwise than published, as a table."""
    title = "otherwise than published"
    table = Table("what", "here, by default", "published", "why", "as published by", title=title, box=None)
    table.title_justify = "left"
    for deviation in method.deviations:
        table.add_row(
            deviation.what, deviation.here, deviation.published, deviation.why, deviation.off or "not offered"
        )
    return table


def _commands(method: Method) -> list[str]:
    """Return the commands that a method takes part in, with the names of its labellers where it has several."""
    labellers = [
        f"pseudolabel --part {part.name}" if part.name else "pseudolabel" for part in method.labellers
    ]
    return [*labellers, *(["train"] if method.trainer else [])]
