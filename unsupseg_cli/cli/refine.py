"""``unsupseg refine``."""

from __future__ import annotations

from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import Call, stage_command
from unsupseg_cli.stages.config import RefineConfig


@stage_command(app, RefineConfig, name="refine")
def refine(call: Call) -> None:
    """Predictions or pseudo-labels -> the same, refined by a dense CRF."""
    context = call.context()
    if call.config.pseudolabels is not None:
        from unsupseg_cli.stages.refine_masks import refine_masks

        call.done(refine_masks(call.config, context))
        return
    from unsupseg_cli.stages.refine import refine as run

    call.done(run(call.config, context))
