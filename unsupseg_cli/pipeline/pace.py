"""How long the stages of a recipe take on a few images: times for a dry run that no earlier run tells."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unsupseg_cli.artifacts.context import REMEMBERED, Context
from unsupseg_cli.artifacts.manifest import Manifest
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.pipeline.recipe import Step
from unsupseg_cli.pipeline.run import run

# Images and optimiser steps. The first run warms up, the others tell fixed from growing cost.
_SIZES = (2, 4, 12)


def probe(steps: Sequence[Step], context: Context) -> list[Manifest]:
    """Run the steps on a few images in a workspace of its own, which is removed; return the manifests.

    Steps that fail there (an input that lies in the real workspace, say) and those after them give none.
    """
    manifests: list[Manifest] = []
    with tempfile.TemporaryDirectory(prefix="unsupseg-probe-") as folder:
        for size in _SIZES:
            workspace = Workspace(Path(folder) / str(size))
            workspace.root.mkdir()
            for name in REMEMBERED:
                if (context.workspace.root / name).exists():
                    shutil.copy2(context.workspace.root / name, workspace.root / name)
            try:
                run([_shortened(step, size) for step in steps], Context(workspace, most_images=size))
            except UnsupsegError as error:
                if size == _SIZES[0]:
                    context.reporter.warn(f"the probe stopped early, some times stay unknown: {error}")
            if size != _SIZES[0]:
                manifests += [artifact.manifest for artifact in workspace.artifacts()]
    return manifests


def extrapolate(points: Sequence[tuple[float, float]], work: float) -> float:
    """Return the seconds of an amount of work from (work, seconds) of two smaller amounts, by a line."""
    (less, first), (more, second) = sorted(points)
    slope = max(0.0, (second - first) / (more - less)) if more > less else 0.0
    return second + slope * (work - more)


def _shortened(step: Step, size: int) -> Step:
    """Return the step with few optimiser steps and epochs, without pictures."""
    config, options = step.config, step.options
    if "sheet" in type(config).model_fields:
        config = config.model_copy(update={"sheet": 0})
    if options is not None:
        fewer = {name: min(size, getattr(options, name)) for name in type(options).marked("length")}
        options = options.model_copy(update=fewer)
    return replace(step, config=config, options=options)
