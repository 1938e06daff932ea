"""The candidates of `tune`: recipes with each combination of some values. This module imports no torch."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from unsupseg_cli.core.address import as_written, is_address
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.pipeline.options import RunConfig
from unsupseg_cli.pipeline.recipe import VARIED, Defaults, MethodDefaults, Step, resolve
from unsupseg_cli.pipeline.recipe_file import RecipeFile, bundled

Vary = Mapping[str, Sequence[Any]]
"""The values that are tried of each ``STAGE.key``."""
_SHOWN = 3  # doubles that are named


@dataclass(frozen=True)
class Candidate:
    """One setting of a recipe: the values of what varies, and the steps that its model needs.

    ``title`` is the recipe's name, or where it lies if another one is called the same. ``options`` of the call are the
    same for all candidates.
    """

    recipe: RecipeFile
    title: str
    values: Mapping[str, Any]
    steps: tuple[Step, ...]
    options: tuple[str, ...] = ()

    @property
    def settings(self) -> tuple[str, ...]:
        """What ``--set`` of `run` takes to make this candidate, one text for each value."""
        return _settings(self.values)

    @property
    def name(self) -> str:
        """What it is called in tables and pictures."""
        return " ".join((self.title, *self.settings))

    @property
    def command(self) -> str:
        """The call that runs the whole recipe with these values, in the same workspace."""
        is_bundled = bundled().get(self.recipe.name) == self.recipe.reference
        name = self.recipe.name if is_bundled else self.recipe.reference
        return shlex.join(["unsupseg", "run", name, *self.options, *_as_options(self.settings)])

    @property
    def model(self) -> Step:
        """The step that makes its model."""
        return self.steps[-1]


@dataclass(frozen=True)
class Candidates:
    """The candidates that are tried, of ``total`` different ones.

    ``doubles`` are left out: each with the one that it is another spelling of.
    """

    tried: tuple[Candidate, ...]
    total: int
    doubles: tuple[tuple[Candidate, Candidate], ...]

    @property
    def left_out(self) -> str:
        """Which are left out as doubles, of many the first; nothing where none is."""
        told = [f"'{double.name}' says what '{same.name}' says" for double, same in self.doubles[:_SHOWN]]
        more = [f"{len(self.doubles) - _SHOWN} more"] if len(self.doubles) > _SHOWN else []
        return "; ".join([*told, *more])


def told_apart(candidates: Sequence[Candidate]) -> tuple[str, list[str]]:
    """Return what the names of candidates have in common, and of each one the rest."""
    words = [(candidate.title, *candidate.settings) for candidate in candidates]
    common = [word for word in words[0] if all(word in other for other in words)]
    rests = [" ".join(word for word in own if word not in common) for own in words]
    return " ".join(common), [
        rest or candidate.name for rest, candidate in zip(rests, candidates, strict=True)
    ]


def candidates(
    recipes: Sequence[RecipeFile],
    vary: Vary,
    budget: int,
    *,
    overrides: RunConfig | None = None,
    assignments: Mapping[str, Any] | None = None,
    defaults: Defaults | None = None,
    method_defaults: MethodDefaults | None = None,
) -> Candidates:
    """Return the candidates that are tried.

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
        UsageError: there are fewer than two candidates, a stage is in no recipe or makes no part of a model, a recipe
            makes no model, one of the values does not fit, or recipes name different images.
    """
    fixed = assignments or {}
    given = _given(recipes, vary, fixed)
    _require_known(recipes, given)
    _require_settled_or_varied(recipes, fixed, vary)
    named = Counter(recipe.name for recipe in recipes)
    settled = []
    for recipe in recipes:
        of_recipe = {name: value for name, value in fixed.items() if _knows(recipe, name)}
        for values in _combinations(recipe, vary or _not_settled(recipe, fixed)):
            steps = resolve(
                *(recipe, overrides, of_recipe, defaults, method_defaults),
                tried=values,
                tried_at=VARIED if vary else _table(recipe),
            )
            title = recipe.name if named[recipe.name] == 1 else recipe.reference
            options = (*_options(overrides), *_as_options(_settings(of_recipe)))
            settled.append(Candidate(recipe, title, values, _to_model(recipe, steps), options))
    _require_of_models(settled, given)
    different, doubles = _different(settled)
    chosen = Candidates(tuple(_drawn(different, budget)), len(different), tuple(doubles))
    if len(different) < 2:
        why = f" ({chosen.left_out})" if doubles else ""
        raise UsageError(
            f"There is nothing to choose among{why}: name several recipes, or values to try, such as --vary "
            "extract.layer=-1 --vary extract.layer=-3."
        )
    _require_same_images(different)
    return chosen


def _drawn(different: Sequence[Candidate], budget: int) -> list[Candidate]:
    """Return at most ``budget`` candidates: the first, and others by chance."""
    if len(different) <= budget:
        return list(different)
    chosen = {0, *Random(0).sample(range(1, len(different)), budget - 1)}
    return [candidate for number, candidate in enumerate(different) if number in chosen]


def _different(
    settled: Sequence[Candidate],
) -> tuple[list[Candidate], list[tuple[Candidate, Candidate]]]:
    """Return the candidates without those whose steps say what those of an earlier one say; and these, in pairs."""
    first: dict[str, Candidate] = {}
    doubles = []
    for candidate in settled:
        steps = [(step.id, step.command, step.config, step.options, step.inputs) for step in candidate.steps]
        if (same := first.setdefault(repr(steps), candidate)) is not candidate:
            doubles.append((candidate, same))
    return list(first.values()), doubles


def _not_settled(recipe: RecipeFile, assignments: Mapping[str, Any]) -> Vary:
    """Return what a recipe tries, without what the command line settles."""
    return {
        name: values
        for name, values in recipe.tune.items()
        if not any(_is_one_option(recipe, name, settled) for settled in assignments)
    }


def _combinations(recipe: RecipeFile, vary: Vary) -> Iterator[dict[str, Any]]:
    """Yield each combination of the values of stages that a recipe has."""
    own = {name: values for name, values in vary.items() if _knows(recipe, name)}
    for values in product(*own.values()):
        yield dict(zip(own, values, strict=True))


def _knows(recipe: RecipeFile, name: str) -> bool:
    """Tell whether a recipe has the stage of ``STAGE.key``."""
    return bool(_stages(recipe, name))


def _stages(recipe: RecipeFile, name: str) -> set[str]:
    """Return the ids of the stages that ``STAGE.key`` is meant for."""
    target = name.partition(".")[0]
    return {stage.id for stage in recipe.stages if target in (stage.id, stage.command)}


def _is_one_option(recipe: RecipeFile, name: str, other: str) -> bool:
    """Tell whether two ``STAGE.key`` mean the same, by the stage's id and by its command, say."""
    keys = {text.partition(".")[2].replace("-", "_") for text in (name, other)}
    return len(keys) == 1 and bool(_stages(recipe, name) & _stages(recipe, other))


class _Given(NamedTuple):
    """A ``STAGE.key`` that a call or a recipe gives values of: how messages name it, and for which recipes."""

    place: str
    name: str
    recipes: Sequence[RecipeFile]

    @property
    def stage(self) -> str:
        return self.name.partition(".")[0]


def _given(recipes: Sequence[RecipeFile], vary: Vary, assignments: Mapping[str, Any]) -> list[_Given]:
    given = [_Given(f"{VARIED} {name}", name, recipes) for name in vary]
    given += [_Given(f"--set {name}", name, recipes) for name in assignments]
    if not vary:
        given += [
            _Given(f"{_table(recipe)}, {name}", name, [recipe]) for recipe in recipes for name in recipe.tune
        ]
    return given


def _table(recipe: RecipeFile) -> str:
    return f"'{recipe.reference}', [tune]"


def _require_known(recipes: Sequence[RecipeFile], given: Sequence[_Given]) -> None:
    """Raise UsageError for values of a stage that no recipe has; or for a recipe given twice."""
    for entry in given:
        if not any(_knows(recipe, entry.name) for recipe in entry.recipes):
            stages = sorted({stage.id for recipe in entry.recipes for stage in recipe.stages})
            raise UsageError(
                f"{entry.place}: no recipe here has a stage '{entry.stage}'; give STAGE.key with one of "
                f"{', '.join(stages)}."
            )
    references = [recipe.reference for recipe in recipes]
    if twice := [reference for reference in references if references.count(reference) > 1]:
        raise UsageError(f"The recipe '{twice[0]}' is named twice; name it once.")


def _require_settled_or_varied(
    recipes: Sequence[RecipeFile], assignments: Mapping[str, Any], vary: Vary
) -> None:
    """Raise UsageError for an option that has one value for all candidates, and is varied."""
    for settled, varied in product(assignments, vary):
        if any(_is_one_option(recipe, settled, varied) for recipe in recipes):
            raise UsageError(f"--set {settled} and --vary {varied} exclude each other: give one of them.")


def _require_of_models(settled: Sequence[Candidate], given: Sequence[_Given]) -> None:
    """Raise UsageError for values of a stage that no candidate's model is made with."""
    for entry in given:
        of_recipes = [candidate for candidate in settled if candidate.recipe in entry.recipes]
        stages = {name for each in of_recipes for step in each.steps for name in (step.id, step.command)}
        if entry.stage not in stages:
            raise UsageError(
                f"{entry.place}: `tune` makes and compares models, which need no stage '{entry.stage}': leave it out, "
                "and give it to `run`."
            )


def _require_same_images(different: Sequence[Candidate]) -> None:
    """Raise UsageError where candidates name different images."""
    first = different[0]
    for other in different[1:]:
        if _images(first) != _images(other):
            raise other_images(first, other, f" ({_images(first)}; {_images(other)})")


def other_images(one: Candidate, other: Candidate, which: str = "") -> UsageError:
    """Return the error that candidates are of different images, and how that is mended."""
    varied = one.recipe == other.recipe
    advice = (
        "leave what names images out of --vary and [tune]"
        if varied
        else "give --dataset, and one split by --set"
    )
    return UsageError(
        f"'{one.name}' and '{other.name}' are of different images{which}, and only segmentations of the same ones can "
        f"be compared: {advice}."
    )


def _images(candidate: Candidate) -> str:
    """Return the images that the first stages of a candidate name."""
    names = []
    for step in candidate.steps:
        if "dataset" in type(step.config).model_fields and not step.inputs:
            dataset = step.config.dataset
            given = [*map(as_written, getattr(step.config, "images", ())), *([dataset] if dataset else [])]
            names += [
                str(Path(name).resolve()) if os.sep in name and not is_address(name) else name
                for name in given
            ]
    return ", ".join(names) or "none named"


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


def _options(overrides: RunConfig | None) -> list[str]:
    """Return the options of `run` that a call gives to every stage, as words."""
    given = {name: getattr(overrides, name, None) for name in RunConfig.model_fields}
    named = {f"--{name.replace('_', '-')}": value for name, value in given.items() if value is not None}
    return [word for name, value in named.items() for word in (name, str(value))]


def _settings(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{name}={_text(value)}" for name, value in values.items())


def _as_options(settings: Sequence[str]) -> list[str]:
    return [word for text in settings for word in ("--set", text)]


def _text(value: Any) -> str:
    """Return a value as ``--set`` reads it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
