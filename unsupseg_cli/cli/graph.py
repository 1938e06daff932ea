"""``unsupseg graph``."""

from __future__ import annotations

from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import Call, stage_command
from unsupseg_cli.stages.config import GraphConfig


@stage_command(app, GraphConfig, name="graph")
def graph(call: Call) -> None:
    """Features -> the nearest neighbours of every view."""
    context = call.context()
    from unsupseg_cli.stages.graph import graph as run

    call.done(run(call.config, context))
