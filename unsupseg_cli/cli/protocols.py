"""protocols: List the protocols of evaluation."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from unsupseg_cli.metrics.protocols import PROTOCOLS

app = typer.Typer()


@app.command("protocols")
def protocols() -> None:
    """List the protocols of evaluation."""
    table = Table("protocol", "geometry", "size", "filter", "flip", "matching", "source", box=None)
    for protocol in PROTOCOLS.values():
        flip = "yes" if protocol.flip else "no"
        table.add_row(
            protocol.name,
            protocol.geometry,
            str(protocol.size or "model's"),
            protocol.filter,
            flip,
            protocol.matching,
            protocol.source,
        )
    Console(highlight=False, soft_wrap=True).print(table)
