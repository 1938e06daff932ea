"""``unsupseg export``."""

from __future__ import annotations

from typing import Annotated

import typer

from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import Call, stage_command
from unsupseg_cli.cli.console import result
from unsupseg_cli.stages.config import ExportConfig

_MODEL = Annotated[str | None, typer.Argument(help="Model artifact; default: the last one.")]


@stage_command(app, ExportConfig, name="export", settings=False, extra={"model": (_MODEL, None)})
def export(call: Call) -> None:
    """A model -> one file with its backbone; elsewhere: predict --model FILE."""
    from unsupseg_cli.stages.export import export as run

    result(str(run(call.config, call.extra["model"], call.context())))
