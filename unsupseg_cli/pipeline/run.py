"""run: the stages of a recipe one after the other, each with the artifacts of the stages before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.pipeline.executor import Perform
from unsupseg_cli.pipeline.recipe import Step, select
from unsupseg_cli.pipeline.recipe_file import Published
from unsupseg_cli.pipeline.stage import perform


def run(
    steps: Sequence[Step],
    context: Context | None = None,
    *,
    first: str | None = None,
    perform: Perform = perform,
) -> dict[str, Artifact]:
    """Run the steps of a recipe and return their artifacts by id; what is there already is reused.

    Args:
        steps: what `recipe.resolve` returned.
        context: with ``force`` every artifact is made again.
        first: make this step's artifact and all later ones again.
        perform: does the work of a call, see `pipeline.executor`; default: in this process.

    Raises:
        UsageError: there is no step ``first``.
    """
    context = context or Context()
    artifacts: dict[str, Artifact] = {}
    for number, (step, forced) in enumerate(with_force(steps, context.force, first), 1):
        name = step.command if step.id == step.command else f"{step.command} ({step.id})"
        context.reporter.info(f"stage {number} of {len(steps)}: {name}")
        inputs = {role: artifacts[source] for role, source in step.inputs.items()}
        artifact = perform(
            step.stage,
            step.config,
            replace(context, force=forced, by_recipe=True),
            options=step.options,
            inputs=inputs,
        )
        if artifact is None:
            raise UsageError(
                "`run` makes one artifact after the other in one process: start `unsupseg train` or `pretrain` with "
                "torchrun, or set their --devices."
            )
        artifacts[step.id] = artifact
    return artifacts


def with_force(steps: Sequence[Step], force: bool, first: str | None) -> list[tuple[Step, bool]]:
    """Return each step and whether it is to be made again; raises UsageError where there is no step ``first``."""
    if first is not None:
        select(steps, first)
    marked = []
    for step in steps:
        force = force or step.id == first
        marked.append((step, force))
    return marked


@dataclass(frozen=True)
class Outcome:
    """One evaluation of a run beside what is published: scores in percent.

    ``published`` is None for an evaluation that the published figures do not speak of. ``changed`` names what the
    command line set otherwise than the recipe: with it the figures are not comparable.
    """

    stage: str
    artifact: Artifact
    accuracy: float
    miou: float
    crf: bool
    published: Published | None
    changed: dict[str, Any]


def outcomes(steps: Sequence[Step], artifacts: Mapping[str, Artifact], published: Published) -> list[Outcome]:
    """Return the evaluations of a run, in order; the published figures stand beside one of them."""
    evaluations = [step for step in steps if step.command == "eval"]
    compared = published.evaluation or (evaluations[-1].id if evaluations else "")
    changed = {f"{step.id}.{key}": value for step in steps for key, value in step.overridden.items()}
    results = []
    for step in evaluations:
        summary = artifacts[step.id].manifest.summary
        results.append(
            Outcome(
                stage=step.id,
                artifact=artifacts[step.id],
                accuracy=100 * summary["accuracy"],
                miou=100 * summary["miou"],
                crf=bool(summary["crf"]),
                published=published if step.id == compared else None,
                changed=changed,
            )
        )
    return results
