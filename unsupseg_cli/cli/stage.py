"""The command of a stage, from its entry in the table of stages."""

from __future__ import annotations

import typer

from unsupseg_cli.cli.command import Invocation, stage_command
from unsupseg_cli.cli.tables import SUMMARIES
from unsupseg_cli.methods.declaration import blamed_on
from unsupseg_cli.pipeline.stage import Stage, choose_method, perform
from unsupseg_cli.pipeline.table import entries, get_stage


def stage_app(name: str) -> typer.Typer:
    """Return the command of a stage."""
    app, stage = typer.Typer(), get_stage(name)

    def command(invocation: Invocation) -> None:
        run_stage(stage, invocation)

    command.__doc__ = f"{entries()[name].summary}."
    stage_command(app, stage.config, name=name, methods=bool(stage.uses))(command)
    return app


def run_stage(stage: Stage, invocation: Invocation) -> None:
    """Make or reuse the artifact of a call, print what its kind has to say, and its path."""
    context, options = invocation.context(), None
    if stage.uses:
        method = choose_method(invocation.config, context)
        part = stage.part(method, getattr(invocation.config, "part", None))
        with blamed_on(method):
            options = invocation.method_options(method, part)
    artifact = perform(stage, invocation.config, context, options=options)
    if artifact is None:
        return
    kind = artifact.manifest.kind
    if kind in SUMMARIES:
        invocation.reporter.table(SUMMARIES[kind](artifact.manifest.summary))
    invocation.done(artifact)
