"""doctor: What this machine has and lacks, with advice for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import print_table, result
from unsupseg_cli.cli.settings import Settings, find_settings, find_workspace
from unsupseg_cli.core.errors import UnsupsegError

app = typer.Typer()


@app.command("doctor")
def doctor(
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-w", help="Folder of the artifacts.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Versions, device, memory, disk, CRF engines and weights, with advice for what is wrong."""

    def action() -> None:
        from unsupseg_cli.diagnosis.doctor import examine

        settings = find_settings(Path.cwd())
        found = examine(find_workspace(workspace, settings), device, _named_weights(settings))
        if as_json:
            result(json.dumps([one.to_json() for one in found], indent=1))
        else:
            table = Table("", "", "", box=None, show_header=False)
            topic = ""
            for one in found:
                shown = one.topic if one.topic != topic else ""
                color = "red" if one.broken else "yellow" if one.advice else ""
                table.add_row(Text(shown, "bold"), one.name, Text(one.value, color))
                topic = one.topic
            print_table(table)
            for one in found:
                if one.advice:
                    console = Console(highlight=False, soft_wrap=True)
                    console.print(Text.assemble((f"{one.name}: ", "yellow"), one.advice))
        if broken := [one.name for one in found if one.broken]:
            raise UnsupsegError(f"No command works here before this is mended: {', '.join(broken)}.")

    run_guarded(action, verbose=False)


def _named_weights(settings: Settings) -> dict[str, Path]:
    """Return the weights file that the ``unsupseg.toml`` names, by its backbone."""
    values = settings.for_command("extract", {"backbone", "weights"})
    if "backbone" in values and "weights" in values:
        return {str(values["backbone"]): Path(str(values["weights"]))}
    return {}
