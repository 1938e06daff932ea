"""export-labels: Predictions -> label maps for other programs: COCO, YOLO, CVAT, Label Studio, VOC, HDF5, maps."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from unsupseg_cli.cli.command import Invocation, one_of, stage_command
from unsupseg_cli.cli.console import result
from unsupseg_cli.pipeline.options import ExportLabelsConfig

app = typer.Typer()
_PREDICTIONS = Annotated[
    str | None, typer.Argument(help="Predictions, refined ones too; default: the last ones.")
]
_NAMED = Annotated[
    str | None, typer.Option("--predictions", help="The same as PREDICTIONS.", show_default=False)
]


@stage_command(
    app,
    ExportLabelsConfig,
    name="export-labels",
    settings=False,
    extra={"predictions": (_PREDICTIONS, None), "named": (_NAMED, None)},
    without=("explain_",),
)
def export_labels(invocation: Invocation) -> None:
    """Predictions -> label maps at the size of the images, in the format of another program (docs/exchange.md)."""
    from unsupseg_cli.pipeline.export_labels import export_labels as run

    path = str(run(invocation.config, one_of(**invocation.extra), invocation.context()))
    result(json.dumps({"path": path}) if invocation.json else path)
