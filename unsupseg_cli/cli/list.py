"""list: List the artifacts of the workspace."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import print_table, result
from unsupseg_cli.cli.workspace import JsonOption, WorkspaceOption, open_workspace
from unsupseg_cli.methods.registry import not_installed

app = typer.Typer()


@app.command("list")
def list_artifacts(
    kind: Annotated[str | None, typer.Argument(help="Only this kind, e.g. features or model.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the artifacts of the workspace."""

    def action() -> None:
        artifacts = sorted(
            open_workspace(workspace).artifacts(kind), key=lambda artifact: artifact.manifest.started
        )
        if as_json:
            rows = [
                json.loads(artifact.manifest.model_dump_json()) | {"path": str(artifact.path)}
                for artifact in artifacts
            ]
            result(json.dumps(rows, indent=1))
            return
        table = Table("kind", "id", "made", "seconds", "MB", "remarks", box=None)
        for artifact in artifacts:
            manifest = artifact.manifest
            size = f"{_total_bytes(artifact) / 1e6:.1f}"
            remarks = [*(["used labels"] if manifest.used_labels else []), not_installed(manifest.config)]
            table.add_row(
                manifest.kind,
                manifest.id,
                manifest.started,
                f"{manifest.seconds:.1f}",
                size,
                "; ".join(filter(None, remarks)),
            )
        print_table(table)

    run_guarded(action, verbose=False)


def _total_bytes(artifact: Artifact) -> int:
    return sum(output.bytes for output in artifact.manifest.outputs.values())
