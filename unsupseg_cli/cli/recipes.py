"""recipes: Published settings, each one file for `unsupseg run`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from unsupseg_cli.cli import completion
from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import TerminalReporter, print_table, result
from unsupseg_cli.cli.run import percent
from unsupseg_cli.pipeline.recipe_file import RecipeFile, bundled, load_recipe
from unsupseg_cli.pipeline.recipe_text import recipe_text

app = typer.Typer(help="Published settings for `unsupseg run`.", no_args_is_help=True)


@app.command("list")
def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")] = False,
) -> None:
    """List the bundled recipes with the published figures."""

    def action() -> None:
        recipes = [load_recipe(name) for name in bundled()]
        if as_json:
            result(json.dumps([_row(recipe) for recipe in recipes], indent=1))
            return
        table = Table("name", "data set", "backbone", "accuracy %", "mIoU %", "AP50 %", box=None)
        for recipe in recipes:
            published = recipe.published
            scores = map(percent, (published.accuracy, published.miou, published.ap50))
            table.add_row(recipe.name, recipe.data.get("dataset", ""), recipe.backbone, *scores)
        print_table(table)

    run_guarded(action)


def _row(recipe: RecipeFile) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "dataset": recipe.data.get("dataset", ""),
        "backbone": recipe.backbone,
        "description": recipe.description,
        "paper": recipe.paper,
        **recipe.published.model_dump(exclude={"evaluation"}),
    }


@app.command("show")
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A recipe's name, FILE.toml, or FILE.toml:VARIANT.", autocompletion=completion.recipes
        ),
    ],
) -> None:
    """Print a recipe, complete by itself: copy it, change it, and give its path to `unsupseg run`."""

    def action() -> None:
        recipe = load_recipe(name)
        TerminalReporter().info(f"the recipe is '{recipe.reference}'")
        result(recipe_text(recipe).rstrip("\n"))

    run_guarded(action)
