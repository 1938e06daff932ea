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
        "--model",
        help="Store the codes of this model, or file of `export`, not a backbone's tokens.",
        show_default=False,
    ),
]


_SHARD = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="Make the share i of n processes (i/n), which may run at once, on one or on several machines with a "
        "common disk; the last one publishes and prints the path, the others print nothing.",
        metavar="I/N",
        show_default=False,
    ),
]


@stage_command(app, ExtractConfig, name="extract", extra={"model": (_MODEL, None), "shard": (_SHARD, None)})
def extract(call: Call) -> None:
    """Images -> features of a frozen backbone."""
    context = call.context()
    from unsupseg_cli.stages.extract import extract as run
    from unsupseg_cli.stages.extract import extract_shard

    model, shard = call.extra["model"], call.extra["shard"]
    if shard is None:
        call.done(run(call.config, context, model=model))
    elif (artifact := extract_shard(call.config, shard, context, model=model)) is not None:
        call.done(artifact)
