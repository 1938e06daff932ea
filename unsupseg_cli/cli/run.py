"""run: All stages of a recipe; what is there is reused, a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from unsupseg_cli.cli.command import Invocation, print_origins, stage_command
from unsupseg_cli.cli.completion import recipes
from unsupseg_cli.cli.console import print_table, result
from unsupseg_cli.cli.settings import parse_assignments
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.layers import explain
from unsupseg_cli.core.progress import duration
from unsupseg_cli.pipeline.options import RunConfig
from unsupseg_cli.pipeline.recipe import Step, resolve, select
from unsupseg_cli.pipeline.recipe_file import Published, RecipeFile, load_recipe

app = typer.Typer()
_RECIPE = Annotated[
    str,
    typer.Argument(
        help="Name of a bundled recipe (`unsupseg recipes list`), or FILE.toml, or FILE.toml:VARIANT.",
        autocompletion=recipes,
    ),
]
_SET = Annotated[
    list[str] | None,
    typer.Option("--set", help="STAGE.key=value, an option of a stage or of its method; repeat it."),
]
_DRY = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would be done, and why; nothing is written.")
]
_PROBE = Annotated[
    bool,
    typer.Option(
        "--measure",
        help="With --dry-run: time all stages on a few images first, in a temporary folder. Times of earlier runs win.",
    ),
]
_FROM = Annotated[
    str | None,
    typer.Option("--from", help="Make this stage and all later ones again.", show_default=False),
]


@stage_command(
    app,
    RunConfig,
    name="run",
    settings=False,
    extra={
        "recipe": (_RECIPE, ...),
        "set_": (_SET, None),
        "dry_run": (_DRY, False),
        "probe": (_PROBE, False),
        "from_": (_FROM, None),
    },
)
def run(invocation: Invocation) -> None:
    """All stages of a recipe; what is there is reused, a stopped run goes on."""
    recipe = load_recipe(invocation.extra["recipe"])
    settings = invocation.settings
    assignments = parse_assignments(invocation.extra["set_"] or [])
    steps = resolve(recipe, invocation.config, assignments, settings.for_command, settings.for_method)
    first: str | None = invocation.extra["from_"]
    if first is not None:
        select(steps, first)
    if invocation.explain:
        explain_steps(steps)
    if invocation.extra["probe"] and not invocation.extra["dry_run"]:
        raise UsageError("--measure tells how long a run may take: it goes with --dry-run.")
    if invocation.extra["probe"] and invocation.config.executor:
        raise UsageError("--measure times this machine: leave --executor out.")
    if invocation.extra["dry_run"]:
        _dry_run(invocation, steps, first)
        return
    context = invocation.context()
    from unsupseg_cli.pipeline.executor import executor
    from unsupseg_cli.pipeline.run import outcomes
    from unsupseg_cli.pipeline.run import run as run_steps

    with executor(invocation.config.executor, invocation.config.address) as perform:
        artifacts = run_steps(steps, context, first=first, perform=perform)
    scores = outcomes(steps, artifacts, recipe.published)
    if scores:
        invocation.reporter.table(_outcome_table(recipe, scores))
        for name in ("source", "retrained"):
            if text := getattr(recipe.published, name):
                invocation.reporter.info(f"{name}: {text}")
        if scores[0].changed:
            changed = ", ".join(f"{key} = {value}" for key, value in scores[0].changed.items())
            invocation.reporter.warn(f"this is not the setting of the recipe ({changed}): compare with care")
    invocation.done(artifacts[steps[-1].id])


def explain_steps(steps: Sequence[Step]) -> None:
    """Print where each option of each stage came from."""
    for step in steps:
        rows = explain(step.config, step.layers)
        rows = [row for row in rows if row[0] not in step.inputs]
        rows += [(role, f"stage {source}", "recipe") for role, source in step.inputs.items()]
        if step.options is not None:
            rows += [
                (f"set.{name}", value, source)
                for name, value, source in explain(step.options, step.method_layers, step.config)
            ]
        print_origins(rows, prefix=f"{step.id}.")


def _dry_run(invocation: Invocation, steps: Sequence[Step], first: str | None) -> None:
    context = invocation.context()
    from unsupseg_cli.artifacts.files import free_bytes
    from unsupseg_cli.data.datasets import MissingImages
    from unsupseg_cli.pipeline.pace import probe
    from unsupseg_cli.pipeline.plan import outline, plan

    try:
        probed = probe(steps, context) if invocation.extra["probe"] else []
        planned = plan(steps, context, first=first, probed=probed)
    except MissingImages as error:
        planned = outline(steps)
        invocation.reporter.warn(f"{error} Sizes and times are told once the images are there.")
    known = [entry.bytes for entry in planned if entry.bytes is not None]
    free, needed = free_bytes(context.workspace.root), sum(known) if known else None
    if invocation.json:
        stages = [entry.to_json() for entry in planned]
        result(json.dumps({"stages": stages, "bytes": needed, "free_bytes": free}, indent=1))
        return
    table = Table("stage", "what", "images", "disk", "time", "why", box=None)
    for entry in planned:
        action = "reused" if entry.reused else "would run"
        disk = "unknown" if entry.bytes is None else _format_bytes(entry.bytes) if entry.bytes else "-"
        images = f"{entry.images:,}" if entry.images else "-"
        table.add_row(entry.step.id, action, images, disk, duration(entry.seconds), entry.why)
    print_table(table)
    if needed is None:
        return
    estimates = [entry.seconds for entry in planned]
    total = sum(seconds for seconds in estimates if seconds is not None)
    spent = duration(total) if total or None not in estimates else "unknown"
    if total and None in estimates:
        spent += " and what is unknown"
    invocation.reporter.info(
        f"disk: {_format_bytes(needed)} about (tables, sheets and models come on top), {_format_bytes(free)} "
        f"free in '{context.workspace.root}'; time: {spent}"
    )
    if 1.05 * needed > free:
        invocation.reporter.warn("the disk is too small: free some space, or give another --workspace")


def _outcome_table(recipe: RecipeFile, outcomes: Sequence[Any]) -> Table:
    """Return the scores of a run, and the published ones below them."""
    table = Table("", "accuracy %", "mIoU %", title=recipe.name, title_justify="left", box=None)
    for outcome in outcomes:
        name = f"{outcome.stage}{' with CRF' if outcome.crf else ''}"
        table.add_row(name, f"{outcome.accuracy:.2f}", f"{outcome.miou:.2f}")
        if outcome.published is not None:
            _add_published(table, outcome.published, outcome.accuracy, outcome.miou)
    return table


def _add_published(table: Table, published: Published, accuracy: float, miou: float) -> None:
    if published.accuracy is None and published.miou is None:
        return
    table.add_row("published", percent(published.accuracy), percent(published.miou))
    table.add_row(
        "difference",
        _format_difference(accuracy, published.accuracy),
        _format_difference(miou, published.miou),
    )


def percent(value: float | None) -> str:
    """Return a published score as text."""
    return "-" if value is None else f"{value:.1f}"


def _format_difference(reached: float, published: float | None) -> str:
    return "-" if published is None else f"{reached - published:+.1f}"


def _format_bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
