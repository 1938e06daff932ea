"""The table of stages: a file of the folder ``stages`` each, known by its first line. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

from unsupseg_cli.core.errors import UsageError, did_you_mean
from unsupseg_cli.core.headlines import Headline, headlines
from unsupseg_cli.pipeline.stage import Stage

_FOLDER = Path(__file__).parents[1] / "stages"


@cache
def entries() -> Mapping[str, Headline]:
    """Return the stages by the name of their command: the module, which is also their name in Python, and a line."""
    return headlines(_FOLDER)


def get_stage(name: str) -> Stage:
    """Import and return the stage of a command; raises UsageError with a suggestion for an unknown name."""
    if name not in entries():
        raise UsageError(f"Unknown stage '{name}'{did_you_mean(name, entries())}")
    stage: Stage = import_module(f"unsupseg_cli.stages.{entries()[name].module}").STAGE
    return stage


def stages() -> dict[str, Stage]:
    """Return all stages by name."""
    return {name: get_stage(name) for name in entries()}


def makers(kind: str) -> list[str]:
    """Return the commands that make artifacts of a kind from others, with the option that asks for it."""
    commands = []
    for name, stage in stages().items():
        ports = stage.reads({}) if stage.reads else stage.ports
        if stage.makes == kind and all(port.kind != kind for port in ports):
            commands.append(name)
        commands += [
            f"{name} --{option}"
            for option, made in stage.also.items()
            if made == kind and option not in stage.roles
        ]
    return commands
