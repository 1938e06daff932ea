"""export: A model -> one file with its backbone: .safetensors for predict --model FILE, or .onnx."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from unsupseg_cli.cli.command import Invocation, one_of, stage_command
from unsupseg_cli.cli.console import result
from unsupseg_cli.pipeline.options import ExportConfig

app = typer.Typer()
_MODEL = Annotated[
    str | None, typer.Argument(help="Model artifact, or a file of `export`; default: the last one.")
]
_NAMED = Annotated[str | None, typer.Option("--model", help="The same as MODEL.", show_default=False)]


@stage_command(
    app,
    ExportConfig,
    name="export",
    settings=False,
    extra={"model": (_MODEL, None), "named": (_NAMED, None)},
    without=("explain_",),
)
def export(invocation: Invocation) -> None:
    """A model -> one file with its backbone: .safetensors for predict --model FILE, or .onnx."""
    from unsupseg_cli.pipeline.export import export as run

    path = str(run(invocation.config, one_of(**invocation.extra), invocation.context()))
    result(json.dumps({"path": path}) if invocation.json else path)
