"""tune: Which setting suits the images, chosen without labels among recipes and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.cli.command import Invocation, stage_command
from unsupseg_cli.cli.completion import recipes
from unsupseg_cli.cli.settings import parse_assignments
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.pipeline.candidates import Candidate, Vary, candidates
from unsupseg_cli.pipeline.options import TuneConfig
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
_DRY = Annotated[bool, typer.Option("--dry-run", help="Only list the candidates.")]


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
    tried, total = candidates(
        [load_recipe(name) for name in extra["recipe"]],
        _parse_vary(extra["vary"] or []),
        config.budget,
        overrides=config,
        assignments=parse_assignments(extra["set_"] or []),
        defaults=settings.for_command,
        method_defaults=settings.for_method,
    )
    if total > len(tried):
        invocation.reporter.info(f"{len(tried)} of {total} candidates are tried: --budget {config.budget}")
    if extra["dry_run"]:
        for candidate in tried:
            invocation.reporter.console.print(candidate.name, markup=False, soft_wrap=True)
        return
    from unsupseg_cli.pipeline.tune import tune as choose

    artifact = choose(tried, config.judged, invocation.context(), config.device or "auto")
    invocation.reporter.table(_table(artifact))
    _tell_best(artifact, tried, invocation)
    invocation.done(artifact)


def _parse_vary(pairs: Sequence[str]) -> Vary:
    """Return the values that are tried of each option, in the order given; raises UsageError for one given twice."""
    vary: dict[str, list[Any]] = {}
    for pair in pairs:
        ((name, value),) = parse_assignments([pair]).items()
        values = vary.setdefault(name, [])
        if value in values:
            raise UsageError(f"--vary {pair} is given twice.")
        values.append(value)
    return vary


def _table(artifact: Artifact) -> Table:
    """Return the candidates, best first."""
    table = Table(
        "rank", "candidate", "criterion", "contrast", "agreement", "place", "classes", "model", box=None
    )
    for row in sorted(artifact.manifest.summary["candidates"], key=lambda row: row["rank"]):
        classes = f"{row['classes_seen']} of {row['classes']}"
        figures = [f"{row[name]:.3f}" for name in _FIGURES]
        table.add_row(str(row["rank"]), row["name"], *figures, classes, row["model"])
    return table


def _tell_best(artifact: Artifact, tried: Sequence[Candidate], invocation: Invocation) -> None:
    """Say how to run what was chosen."""
    name = artifact.manifest.summary["candidates"][artifact.manifest.summary["best"]]["name"]
    best = next(candidate for candidate in tried if candidate.name == name)
    invocation.reporter.info(
        f"best: {name}; its model is the one that commands take now. The whole recipe: `{best.command}` with the other "
        "options of this call"
    )
