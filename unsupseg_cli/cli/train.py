"""``unsupseg train``."""

from __future__ import annotations

from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import Call, stage_command
from unsupseg_cli.stages.config import TrainConfig


@stage_command(app, TrainConfig, name="train", methods=True)
def train(call: Call) -> None:
    """Features and pseudo-labels -> a model."""
    context = call.context()
    from unsupseg_cli.stages.train import choose_method
    from unsupseg_cli.stages.train import train as run

    method = choose_method(call.config, context)
    options = call.method_options(method.train_config())
    call.done(run(call.config, context, options=options))
