"""``unsupseg protocols``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from unsupseg_cli.cli.app import app
from unsupseg_cli.metrics.protocols import PROTOCOLS


@app.command("protocols", rich_help_panel="Look up")
def protocols() -> None:
    """List the protocols of evaluation."""
    table = Table("protocol", "geometry", "size", "filter", "flip", "matching", "source", box=None)
    for one in PROTOCOLS.values():
        flip = "yes" if one.flip else "no"
        table.add_row(
            one.name, one.geometry, str(one.size or "model's"), one.filter, flip, one.matching, one.source
        )
    Console(highlight=False, soft_wrap=True).print(table)
