"""``unsupseg extract``."""

from __future__ import annotations

from typing import Annotated

import typer

from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import Call, stage_command
from unsupseg_cli.stages.config import ExtractConfig

_MODEL = Annotated[
    str | None,
    typer.Option(
        "--model", help="Store the codes of this model instead of a backbone's tokens.", show_default=False
    ),
]


@stage_command(app, ExtractConfig, name="extract", extra={"model": (_MODEL, None)})
def extract(call: Call) -> None:
    """Images -> features of a frozen backbone."""
    context = call.context()
    from unsupseg_cli.stages.extract import extract as run

    call.done(run(call.config, context, model=call.extra["model"]))
