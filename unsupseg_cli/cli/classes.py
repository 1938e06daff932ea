"""classes: Look at the classes of a model, name, color or merge them (a new model), and apply them to predictions."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from unsupseg_cli.cli.command import Invocation, one_of, run_guarded, stage_command
from unsupseg_cli.cli.console import TerminalReporter, print_table, result
from unsupseg_cli.cli.workspace import (
    CacheOption,
    CacheSizeOption,
    WorkspaceOption,
    open_workspace,
    refuse_address,
)
from unsupseg_cli.core.config import Config, execution
from unsupseg_cli.core.errors import UsageError, reason_of
from unsupseg_cli.pipeline.stage import perform
from unsupseg_cli.stages.classes import STAGE, ClassesConfig
from unsupseg_cli.stages.scan import STAGE as SCAN
from unsupseg_cli.stages.scan import ScanConfig

app = typer.Typer(
    help="Look at the classes of a model, name, color or merge them: the result is a new model, the weights stay.",
    no_args_is_help=True,
)


class _ModelConfig(Config):
    model: str | None = execution(None, ClassesConfig.model_fields["model"].description or "")


_command = partial(stage_command, app, _ModelConfig, settings=False, without=("explain_",))
_PICTURES = {".png", ".jpg", ".jpeg"}
_PREDICTIONS = Annotated[
    str | None,
    typer.Argument(
        help="Predictions of the model before, refined ones too; default: those of --out, else the last."
    ),
]
_NAMED = Annotated[
    str | None, typer.Option("--predictions", help="The same as PREDICTIONS.", show_default=False)
]
_OUT = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Also copy the label maps and pictures here.", callback=refuse_address),
]
_PAIRS = Annotated[list[str], typer.Argument(metavar="CLASS=VALUE", help="A class is a name or an id.")]
_GROUPS = Annotated[
    list[str] | None, typer.Argument(metavar="CLASS,CLASS", help="Each argument is one group.")
]
_TO = Annotated[
    int | None,
    typer.Option("--to", help="Merge the most alike ones until so many classes are left, instead.", min=1),
]


@app.command("show")
def show(
    model: Annotated[
        str | None, typer.Argument(help="Model artifact, or a file of `export`; default: the last one.")
    ] = None,
    named: Annotated[
        str | None, typer.Option("--model", help="The same as MODEL.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write a picture: the images of the last predictions that show most of each class.",
            callback=refuse_address,
        ),
    ] = None,
    predictions: Annotated[str | None, typer.Option(help="Predictions for the picture instead.")] = None,
    workspace: WorkspaceOption = None,
    cache: CacheOption = None,
    cache_size: CacheSizeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print id, name and color of each class, and which clusters it is made of."""

    def action() -> None:
        from unsupseg_cli.artifacts.context import Context
        from unsupseg_cli.artifacts.files import whole_file
        from unsupseg_cli.contents.class_sheet import class_sheet, require_class_sheet, save_class_sheet
        from unsupseg_cli.contents.model import read_model
        from unsupseg_cli.contents.model_classes import classes_record
        from unsupseg_cli.pipeline.inputs import take_artifact

        if out is not None and out.suffix.lower() not in _PICTURES:
            raise UsageError(f"--out '{out}' is no picture: expected a name that ends in .png or .jpg.")
        space = open_workspace(workspace, cache, cache_size, new=True, images=True)
        context = Context(space, TerminalReporter())
        artifact = take_artifact("model", one_of(model=model, named=named), context)
        file, _ = read_model(artifact)
        if out is not None:
            require_class_sheet(out)
            picture = class_sheet(artifact, file, context, predictions)
            try:
                out.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(out) as unfinished:
                    save_class_sheet(picture, unfinished)
            except OSError as error:
                raise UsageError(
                    f"'{out}' cannot be written ({reason_of(error)}); give another --out."
                ) from None
            context.reporter.info(f"the picture is '{out}'")
        records = classes_record(file)
        if as_json:
            result(json.dumps({"model": artifact.id, "classes": records}, indent=1))
        else:
            print_table(_table(records))

    run_guarded(action)


def _table(records: list[dict[str, Any]]) -> Table:
    table = Table("id", "name", "color", "clusters", box=None)
    for record in records:
        code = "#{:02x}{:02x}{:02x}".format(*record["color"])
        table.add_row(
            str(record["id"]),
            Text(record["name"]),
            Text.assemble(("  ", f"on {code}"), f" {code}"),
            ", ".join(map(str, record["clusters"])),
        )
    return table


@stage_command(app, ScanConfig, name="scan")
def scan(invocation: Invocation) -> None:
    """Look for the number of classes of features: a criterion over K, and a sheet of some K."""
    artifact = perform(SCAN, invocation.config, invocation.context())
    assert artifact is not None
    low, high = invocation.config.bounds
    best = artifact.manifest.summary["classes"]
    table = Table("classes", "silhouette", "inertia", "smallest class %", box=None)
    for row in artifact.manifest.summary["rows"]:
        figures = [f"{row[name]:.4f}" for name in ("silhouette", "inertia")]
        style = "bold" if row["classes"] == best else ""
        table.add_row(str(row["classes"]), *figures, f"{100 * row['smallest']:.1f}", style=style)
    invocation.reporter.table(table)
    auto = ", or --classes auto" if invocation.config.bounds == type(invocation.config)().bounds else ""
    invocation.reporter.info(f"{best} classes: `unsupseg pseudolabel --classes {best}`{auto}")
    if best == high > low:
        invocation.reporter.info(f"that is the largest tried: --range {low}-{2 * high} looks further")
    invocation.done(artifact)


@_command(name="name", extra={"pairs": (_PAIRS, ...)})
def name(invocation: Invocation) -> None:
    """Name classes: unsupseg classes name 3=road "class 5=sky"."""
    _change(invocation, names=_parse_pairs(invocation.extra["pairs"]))


@_command(name="color", extra={"pairs": (_PAIRS, ...)})
def color(invocation: Invocation) -> None:
    """Color classes: unsupseg classes color road=#804080 sky=70,130,180 3=sienna."""
    _change(invocation, colors=_parse_pairs(invocation.extra["pairs"]))


@_command(name="merge", extra={"groups": (_GROUPS, None), "to": (_TO, None)})
def merge(invocation: Invocation) -> None:
    """Make one class of each group, under id, name and color of its first: unsupseg classes merge 3,5 road,7,8."""
    given, to = invocation.extra["groups"] or [], invocation.extra["to"]
    if bool(given) == (to is not None):
        raise UsageError("Give groups of classes, such as 3,5, or --to with the number of classes to keep.")
    if to is None:
        _change(invocation, merge=tuple(tuple(name.strip() for name in group.split(",")) for group in given))
        return
    from unsupseg_cli.pipeline.alike import alike
    from unsupseg_cli.pipeline.inputs import take_artifact

    context = invocation.context()
    model = take_artifact("model", invocation.config.model, context)
    groups = alike(model, to, context)
    config = ClassesConfig(model=model.id, merge=groups)
    invocation.done(perform(STAGE, config, context))


@_command(
    name="apply",
    extra={"predictions": (_PREDICTIONS, None), "named": (_NAMED, None), "out": (_OUT, None)},
)
def apply(invocation: Invocation) -> None:
    """Bring stored predictions under the names, colors and merges of a model made of theirs; no network runs."""
    from unsupseg_cli.contents.result_folder import find_source
    from unsupseg_cli.pipeline.inputs import take_artifact

    out, context = invocation.extra["out"], invocation.context()
    predictions = one_of(predictions=invocation.extra["predictions"], named=invocation.extra["named"])
    if predictions is None and out is not None and (source := find_source(out, context)) is not None:
        invocation.reporter.info(f"'{out}' was made from '{source.id}'")
        predictions = source.id
    predictions = predictions or take_artifact("predictions", None, context).id
    _change(invocation, predictions=predictions, out=out)


def _change(invocation: Invocation, **changes: Any) -> None:
    config = ClassesConfig(model=invocation.config.model, **changes)
    invocation.done(perform(STAGE, config, invocation.context()))


def _parse_pairs(arguments: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for argument in arguments:
        reference, equals, value = argument.partition("=")
        if not equals:
            raise UsageError(f"'{argument}' is not of the form CLASS=VALUE, such as 3=road.")
        if reference.strip() in pairs:
            raise UsageError(f"The class '{reference.strip()}' is given twice.")
        pairs[reference.strip()] = value.strip()
    return pairs
