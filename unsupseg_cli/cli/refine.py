"""``unsupseg refine``."""

from __future__ import annotations

from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import Call, stage_command
from unsupseg_cli.stages.config import RefineConfig


@stage_command(app, RefineConfig, name="refine")
def refine(call: Call) -> None:
    """Predictions -> predictions refined by a dense CRF."""
    context = call.context()
    from unsupseg_cli.stages.refine import refine as run

    call.done(run(call.config, context))
