"""The candidates of `tune`: recipes with each combination of some values. This module imports no torch."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.pipeline.options import RunConfig
from unsupseg_cli.pipeline.recipe import Defaults, MethodDefaults, Step, resolve
from unsupseg_cli.pipeline.recipe_file import RecipeFile, bundled

Vary = Mapping[str, Sequence[Any]]
"""The values that are tried of each ``STAGE.key``."""


@dataclass(frozen=True)
class Candidate:
    """One setting of a recipe: the values of what varies, and the steps that its model needs.

    ``title`` is the recipe's name, or where it lies if another one is called the same.
    """

    recipe: RecipeFile
    title: str
    values: Mapping[str, Any]
    steps: tuple[Step, ...]

    @property
    def settings(self) -> tuple[str, ...]:
        """What ``--set`` of `run` takes to make this candidate, one text for each value."""
        return tuple(f"{name}={_text(value)}" for name, value in self.values.items())

    @property
    def name(self) -> str:
        """What it is called in tables and pictures."""
        return " ".join((self.title, *self.settings))

    @property
    def command(self) -> str:
        """The call that runs the whole recipe with these values."""
        name = self.recipe.name if self.recipe.name in bundled() else self.recipe.reference
        return shlex.join(
            ["unsupseg", "run", name, *(word for text in self.settings for word in ("--set", text))]
        )

    @property
    def model(self) -> Step:
        """The step that makes its model."""
        return self.steps[-1]


def candidates(
    recipes: Sequence[RecipeFile],
    vary: Vary,
    budget: int,
    *,
    overrides: RunConfig | None = None,
    assignments: Mapping[str, Any] | None = None,
    defaults: Defaults | None = None,
    method_defaults: MethodDefaults | None = None,
) -> tuple[list[Candidate], int]:
    """Return the candidates that are tried, and how many there are in all.

    Each recipe is tried with each combination of the values, of its own table ``[tune]`` where none are given. Of more
    than ``budget`` the first and others drawn by chance are taken, in the order of the whole.

    Args:
        recipes: what is tuned.
        vary: values by ``STAGE.key``; a recipe without that stage is tried without it.
        budget: most candidates.
        overrides: values for every stage, as of `recipe.resolve`; and so on.
        assignments: values by ``STAGE.key`` for all candidates whose recipe has that stage.
        defaults: of the commands, from an ``unsupseg.toml``.
        method_defaults: of the methods.

    Raises:
        UsageError: there are fewer than two candidates, a stage is in no recipe, a recipe makes no model, or one of the
            values does not fit.
    """
    _require_known(recipes, vary, assignments or {})
    if both := sorted(vary.keys() & (assignments or {}).keys()):
        raise UsageError(f"--set {both[0]} and --vary {both[0]} exclude each other: give one of them.")
    combinations = [
        (recipe, values)
        for recipe in recipes
        for values in _combinations(recipe, vary or _without(recipe.tune, assignments or {}))
    ]
    named = Counter(recipe.name for recipe in recipes)
    if len(combinations) < 2:
        raise UsageError(
            "There is nothing to choose among: name several recipes, or values to try, such as --vary extract.layer=-1 "
            "--vary extract.layer=-3."
        )
    chosen = set(range(len(combinations)))
    if len(combinations) > budget:
        chosen = {0, *Random(0).sample(range(1, len(combinations)), budget - 1)}
    tried = []
    for number, (recipe, values) in enumerate(combinations):
        fixed = {name: value for name, value in (assignments or {}).items() if _knows(recipe, name)}
        steps = resolve(recipe, overrides, {**fixed, **values}, defaults, method_defaults)
        if number in chosen:  # the others too are checked
            title = recipe.name if named[recipe.name] == 1 else recipe.reference
            tried.append(Candidate(recipe, title, values, _to_model(recipe, steps)))
    return tried, len(combinations)


def _without(tune: Vary, assignments: Mapping[str, Any]) -> Vary:
    """Return what a recipe tries, without what the command line settles."""
    return {name: values for name, values in tune.items() if name not in assignments}


def _combinations(recipe: RecipeFile, vary: Vary) -> Iterator[dict[str, Any]]:
    """Yield each combination of the values of stages that a recipe has."""
    own = {name: values for name, values in vary.items() if _knows(recipe, name)}
    for values in product(*own.values()):
        yield dict(zip(own, values, strict=True))


def _knows(recipe: RecipeFile, name: str) -> bool:
    """Tell whether a recipe has the stage of ``STAGE.key``."""
    return any(name.partition(".")[0] in (stage.id, stage.command) for stage in recipe.stages)


def _require_known(recipes: Sequence[RecipeFile], vary: Vary, assignments: Mapping[str, Any]) -> None:
    """Raise UsageError for values of a stage that no recipe has, or without a value; or for a recipe given twice."""
    given = [
        (f"--{option} {name}", name, recipes)
        for option, names in (("vary", vary), ("set", assignments))
        for name in names
    ]
    if not vary:
        given += [
            (f"'{recipe.reference}', [tune], {name}", name, [recipe])
            for recipe in recipes
            for name in recipe.tune
        ]
        for recipe in recipes:
            if empty := [name for name, values in recipe.tune.items() if not values]:
                raise UsageError(f"'{recipe.reference}', [tune], {empty[0]}: there is no value to try.")
    for place, name, among in given:
        if not any(_knows(recipe, name) for recipe in among):
            stages = sorted({stage.id for recipe in among for stage in recipe.stages})
            raise UsageError(
                f"{place}: no recipe here has a stage '{name.partition('.')[0]}'; give STAGE.key with one of "
                f"{', '.join(stages)}."
            )
    references = [recipe.reference for recipe in recipes]
    if twice := [reference for reference in references if references.count(reference) > 1]:
        raise UsageError(f"The recipe '{twice[0]}' is named twice; name it once.")


def _to_model(recipe: RecipeFile, steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return the last step that makes a model behind those that it needs, in order."""
    models = [step for step in steps if step.makes == "model"]
    if not models:
        raise UsageError(f"The recipe '{recipe.name}' makes no model: there is nothing to compare.")
    needed = {models[-1].id}
    for step in reversed(steps):
        if step.id in needed:
            needed |= set(step.inputs.values())
    return tuple(step for step in steps if step.id in needed)


def _text(value: Any) -> str:
    """Return a value as ``--set`` reads it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
