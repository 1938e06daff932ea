"""``unsupseg demo``: the whole chain on the bundled scenes."""

from __future__ import annotations

from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import Call, stage_command
from unsupseg_cli.cli.evaluate import score_table
from unsupseg_cli.stages.config import DemoConfig


@stage_command(app, DemoConfig, name="demo")
def demo(call: Call) -> None:
    """The whole chain on the bundled scenes: offline, a few minutes on two cores."""
    context = call.context()
    from unsupseg_cli.stages.demo import demo as run

    artifact = run(call.config, context)
    console = call.reporter.console
    console.print(score_table(artifact.manifest.summary))
    console.print(f"look at {artifact.path / 'sheet.png'}", soft_wrap=True)
    call.done(artifact)
