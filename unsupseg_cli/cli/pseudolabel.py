"""``unsupseg pseudolabel``."""

from __future__ import annotations

from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import Call, stage_command
from unsupseg_cli.methods.registry import get_method
from unsupseg_cli.stages.config import PseudolabelConfig


@stage_command(app, PseudolabelConfig, name="pseudolabel", methods=True)
def pseudolabel(call: Call) -> None:
    """Features -> pseudo-masks."""
    options = call.method_options(get_method(call.config.method).pseudolabel_config())
    context = call.context()
    from unsupseg_cli.stages.pseudolabel import pseudolabel as run

    call.done(run(call.config, context, options=options))
