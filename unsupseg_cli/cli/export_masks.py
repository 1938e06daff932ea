"""export-masks: Masks -> a COCO file (run lengths or polygons), at the size of the images."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from unsupseg_cli.cli.command import Invocation, one_of, stage_command
from unsupseg_cli.cli.console import result
from unsupseg_cli.pipeline.options import ExportMasksConfig

app = typer.Typer()
_MASKS = Annotated[
    str | None,
    typer.Argument(help="Pseudo-labels, or masks of `import-masks`; default: the last pseudo-labels."),
]
_NAMED = Annotated[str | None, typer.Option("--masks", help="The same as MASKS.", show_default=False)]
_PSEUDOLABELS = Annotated[
    str | None, typer.Option("--pseudolabels", help="The same as MASKS.", show_default=False)
]


@stage_command(
    app,
    ExportMasksConfig,
    name="export-masks",
    settings=False,
    extra={"masks": (_MASKS, None), "named": (_NAMED, None), "pseudolabels": (_PSEUDOLABELS, None)},
    without=("explain_",),
)
def export_masks(invocation: Invocation) -> None:
    """Masks -> a COCO file (run lengths or polygons), at the size of the images; `import-masks` reads it."""
    from unsupseg_cli.pipeline.export_masks import export_masks as run

    path = str(run(invocation.config, one_of(**invocation.extra), invocation.context()))
    result(json.dumps({"path": path}) if invocation.json else path)
