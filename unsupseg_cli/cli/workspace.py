"""What the commands that care for the workspace share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.settings import find_settings, find_workspace
from unsupseg_cli.core.errors import UsageError

WorkspaceOption = Annotated[
    Path | None, typer.Option("--workspace", "-w", help="Folder of the artifacts.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
err = Console(stderr=True, highlight=False)


def open_workspace(option: Path | None) -> Workspace:
    """Return the workspace of a call; raises UsageError where there is none yet."""
    root = find_workspace(option, find_settings(Path.cwd()))
    if not root.is_dir():
        raise UsageError(f"There is no workspace '{root}' yet; `unsupseg extract` makes it.")
    return Workspace(root)
