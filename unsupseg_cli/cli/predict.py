"""``unsupseg predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import Call, stage_command
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.stages.config import PredictConfig

_IMAGES = Annotated[
    list[Path] | None, typer.Argument(help="Images or folders; or name a data set with --dataset.")
]
_OUT = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Also copy the label maps and pictures here.", show_default=False),
]


@stage_command(app, PredictConfig, name="predict", extra={"images": (_IMAGES, None), "out": (_OUT, None)})
def predict(call: Call) -> None:
    """A model and images -> label maps and pictures."""
    paths: list[Path] = call.extra["images"] or []
    context = call.context()
    from unsupseg_cli.stages.predict import predict as run

    for path in paths:
        if not path.exists():
            raise UsageError(f"'{path}' does not exist; give images or folders of images.")
    call.done(run(call.config, context, images=paths, out=call.extra["out"]))
