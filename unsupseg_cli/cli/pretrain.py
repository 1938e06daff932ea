"""``unsupseg pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import Call, stage_command
from unsupseg_cli.pretraining.config import PretrainConfig

_IMAGES = Annotated[
    list[Path] | None,
    typer.Option("--images", help="Folder of images; repeat it for more folders.", show_default=False),
]


@stage_command(app, PretrainConfig, name="pretrain", extra={"images": (_IMAGES, None)})
def pretrain(call: Call) -> None:
    """Unlabelled images -> a small backbone of your own."""
    context = call.context()
    from unsupseg_cli.stages.pretrain import pretrain as run

    call.done(run(call.config, context, images=call.extra["images"] or []))
