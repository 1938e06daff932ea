"""tune: Which setting suits the images, chosen without labels among recipes and values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.cli.command import Invocation, stage_command
from unsupseg_cli.cli.completion import recipes
from unsupseg_cli.cli.console import print_columns, result
from unsupseg_cli.cli.settings import parse_assignment, parse_assignments
from unsupseg_cli.pipeline.candidates import Candidate, Candidates, Vary, candidates, told_apart
from unsupseg_cli.pipeline.options import TuneConfig
from unsupseg_cli.pipeline.recipe import VARIED
from unsupseg_cli.pipeline.recipe_file import load_recipe

app = typer.Typer()
_RECIPES = Annotated[
    list[str],
    typer.Argument(
        help="Recipes to choose among (`unsupseg recipes list`): names, FILE.toml or FILE.toml:VARIANT.",
        autocompletion=recipes,
    ),
]
_VARY = Annotated[
    list[str] | None,
    typer.Option(
        "--vary",
        metavar="STAGE.key=value",
        help="A value to try; repeat it. Default: what the recipe lists under [tune].",
    ),
]
_SET = Annotated[
    list[str] | None,
    typer.Option("--set", help="STAGE.key=value, the same for all candidates; repeat it."),
]
_FIGURES = ("criterion", "contrast", "agreement", "told_by_place")
_DRY = Annotated[
    bool, typer.Option("--dry-run", help="Only list the candidates and their commands; nothing is written.")
]


@stage_command(
    app,
    TuneConfig,
    name="tune",
    settings=False,
    extra={"recipe": (_RECIPES, ...), "vary": (_VARY, None), "set_": (_SET, None), "dry_run": (_DRY, False)},
    without=("explain_",),
)
def tune(invocation: Invocation) -> None:
    """Which setting suits the images, chosen without labels among recipes and values.

    Every candidate's model is made as `run` makes it. Borders of a good segmentation lie where colours change, and
    candidates that look at the images in another way (other blocks, backbones, conditionings) agree with it beyond what
    the place in the image tells.
    """
    config, extra, settings = invocation.config, invocation.extra, invocation.settings
    chosen = candidates(
        [load_recipe(name) for name in extra["recipe"]],
        _parse_vary(extra["vary"] or []),
        config.budget,
        overrides=config,
        assignments=parse_assignments(extra["set_"] or []),
        defaults=settings.for_command,
        method_defaults=settings.for_method,
    )
    _tell_left_out(chosen, config.budget, invocation)
    if extra["dry_run"]:
        _dry_run(chosen, invocation)
        return
    from unsupseg_cli.pipeline.executor import executor
    from unsupseg_cli.pipeline.tune import tune as choose

    with executor(config.executor, config.address) as perform:
        device = "auto" if config.executor else config.device or "auto"
        artifact = choose(chosen.tried, config.judged, invocation.context(), device, perform=perform)
    _tell_choice(artifact, chosen.tried, invocation)
    invocation.done(artifact)


def _parse_vary(pairs: Sequence[str]) -> Vary:
    """Return the values that are tried of each option, in the order given."""
    vary: dict[str, list[Any]] = {}
    for pair in pairs:
        name, value = parse_assignment(pair, VARIED, "STAGE.key=value")
        vary.setdefault(name, []).append(value)
    return vary


def _tell_left_out(chosen: Candidates, budget: int, invocation: Invocation) -> None:
    """Say which candidates are not tried, and why."""
    if chosen.doubles:
        invocation.reporter.info(f"left out: {chosen.left_out}")
    if chosen.total > len(chosen.tried):
        invocation.reporter.info(
            f"{len(chosen.tried)} of {chosen.total} candidates are tried: --budget {budget}"
        )


def _dry_run(chosen: Candidates, invocation: Invocation) -> None:
    """Print the candidates that would be tried."""
    context = invocation.context()
    from unsupseg_cli.data.datasets import MissingImages
    from unsupseg_cli.pipeline.plan import outline
    from unsupseg_cli.pipeline.tune import look_over

    try:
        plans = look_over(chosen.tried, context)
    except MissingImages as error:
        plans = [outline(candidate.steps) for candidate in chosen.tried]
        invocation.reporter.warn(str(error))
    if invocation.json:
        rows = [
            {"name": each.name, "command": each.command, "stages": [entry.to_json() for entry in plan]}
            for each, plan in zip(chosen.tried, plans, strict=True)
        ]
        result(json.dumps({"candidates": rows, "total": chosen.total}, indent=1))
        return
    print_columns(["candidate", "command"], [[each.name, each.command] for each in chosen.tried])


def _tell_choice(artifact: Artifact, tried: Sequence[Candidate], invocation: Invocation) -> None:
    """Print the candidates, best first, and how to run what was chosen."""
    by_name = {candidate.name: candidate for candidate in tried}
    rows = sorted(artifact.manifest.summary["candidates"], key=lambda row: row["rank"])
    invocation.reporter.table(_table(rows, [by_name[row["name"]] for row in rows]))
    best = rows[0]
    invocation.reporter.info(
        f"best: {best['name']}; its model '{best['model']}' is the one that commands take now (candidates.csv has the "
        f"others). The whole recipe: `{by_name[best['name']].command}`, in this workspace"
    )


def _table(rows: Sequence[dict[str, Any]], ranked: Sequence[Candidate]) -> Table:
    """Return the candidates in the order of their rank: what tells them apart, and their figures."""
    common, labels = told_apart(ranked)
    table = Table(box=None, title=Text(common), title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("rank", no_wrap=True)
    table.add_column("candidate", overflow="fold")
    for heading in ("criterion", "contrast", "agreement", "place", "classes"):
        table.add_column(heading, no_wrap=True)
    for row, label in zip(rows, labels, strict=True):
        classes = f"{row['classes_seen']} of {row['classes']}"
        table.add_row(str(row["rank"]), Text(label), *(f"{row[name]:.3f}" for name in _FIGURES), classes)
    return table
