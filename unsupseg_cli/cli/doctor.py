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
from unsupseg_cli.cli.console import print_table, result, say
from unsupseg_cli.cli.settings import Settings, find_cache, find_settings, find_workspace
from unsupseg_cli.cli.workspace import CacheOption, CacheSizeOption, WorkspaceOption, open_place
from unsupseg_cli.core.errors import UnsupsegError

app = typer.Typer()


@app.command("doctor")
def doctor(
    workspace: WorkspaceOption = None,
    cache: CacheOption = None,
    cache_size: CacheSizeOption = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Versions, device, memory, disk, CRF engines and weights, with advice for what is wrong."""

    def action() -> None:
        from unsupseg_cli.diagnosis.doctor import examine

        settings = find_settings(Path.cwd())
        space = open_place(find_workspace(workspace, settings), find_cache(cache, cache_size, settings), say)
        findings = examine(space, device, _named_weights(settings))
        if as_json:
            result(json.dumps([finding.to_json() for finding in findings], indent=1))
        else:
            table = Table("", "", "", box=None, show_header=False)
            topic = ""
            for finding in findings:
                heading = finding.topic if finding.topic != topic else ""
                color = "red" if finding.broken else "yellow" if finding.advice else ""
                table.add_row(Text(heading, "bold"), finding.name, Text(finding.value, color))
                topic = finding.topic
            print_table(table)
            for finding in findings:
                if finding.advice:
                    console = Console(highlight=False, soft_wrap=True)
                    console.print(Text.assemble((f"{finding.name}: ", "yellow"), finding.advice))
        if broken := [finding.name for finding in findings if finding.broken]:
            raise UnsupsegError(f"No command works here before this is mended: {', '.join(broken)}.")

    run_guarded(action)


def _named_weights(settings: Settings) -> dict[str, Path]:
    """Return the weights file that the ``unsupseg.toml`` names, by its backbone."""
    values = settings.for_command("extract", {"backbone", "weights"})
    if "backbone" in values and "weights" in values:
        return {str(values["backbone"]): Path(str(values["weights"]))}
    return {}
