"""Unsupervised semantic segmentation as a staged pipeline on disk.

The stages are functions that take the same configuration classes as the commands::

    from unsupseg_cli import Context, ExtractConfig, TqdmReporter, extract

    features = extract(ExtractConfig(dataset="photos"), Context(reporter=TqdmReporter()))

Every file of the folder ``stages`` gives its stage, under the name of the file, and its configuration class; what is
named here is imported when it is used. docs/api.md has an example of all of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["Context", "TqdmReporter", "Workspace", "open_workspace"]

_NO_COMMAND = {"scan": "ScanConfig"}
"""The stages that are no command of their own, with their configuration class."""


def __getattr__(name: str) -> Any:
    """Import a stage or a configuration when it is used, so that the command line starts quickly."""
    if name.startswith("_"):
        raise AttributeError(name)
    if name == "Context":
        from unsupseg_cli.artifacts.context import Context

        return Context
    if name == "TqdmReporter":
        from unsupseg_cli.core.progress import TqdmReporter

        return TqdmReporter
    if name == "Workspace":
        from unsupseg_cli.artifacts.workspace import Workspace

        return Workspace
    if name == "open_workspace":
        from unsupseg_cli.storage.open import open_workspace

        return open_workspace
    from unsupseg_cli.pipeline.table import entries, get_stage

    for module, config in _NO_COMMAND.items():
        if name in (module, config):
            stage = import_module(f"unsupseg_cli.stages.{module}").STAGE
            return stage if name == module else stage.config
    for command, entry in entries().items():
        if entry.module == name:
            return get_stage(command)
    for command in entries() if name.endswith("Config") else ():
        stage = get_stage(command)
        if stage.config.__name__ == name:
            return stage.config
    raise AttributeError(f"module 'unsupseg_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return what can be imported from here."""
    from unsupseg_cli.pipeline.table import entries, stages

    configs = [stage.config.__name__ for stage in stages().values()]
    modules = [entry.module for entry in entries().values()]
    return sorted({*__all__, *modules, *configs, *_NO_COMMAND, *_NO_COMMAND.values()})
