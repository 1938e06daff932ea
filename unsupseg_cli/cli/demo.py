"""demo: The whole chain on the bundled scenes: offline, a few minutes on two cores."""

from __future__ import annotations

import typer

from unsupseg_cli.cli.command import Invocation, stage_command
from unsupseg_cli.cli.tables import score_table
from unsupseg_cli.pipeline.options import DemoConfig, RunConfig
from unsupseg_cli.pipeline.recipe import resolve
from unsupseg_cli.pipeline.recipe_file import load_recipe

RECIPE = "scenes-best"
app = typer.Typer()


@stage_command(app, DemoConfig, name="demo", settings=False, without=("explain_",))
def demo(invocation: Invocation) -> None:
    """The whole chain on the bundled scenes: offline, a few minutes on two cores. It is the recipe scenes-best."""
    context = invocation.context()
    from unsupseg_cli.pipeline.run import run

    steps = resolve(load_recipe(RECIPE), RunConfig(**invocation.config.model_dump()))
    artifact = run(steps, context)[steps[-1].id]
    invocation.reporter.table(score_table(artifact.manifest.summary))
    invocation.done(artifact)
