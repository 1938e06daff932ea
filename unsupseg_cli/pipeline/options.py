"""The options of `run` and `demo`. This module imports no torch."""

from __future__ import annotations

from pathlib import Path

from unsupseg_cli.core.config import Config, execution, setting


class RunConfig(Config):
    """Run the stages of a recipe; what is given here is given to every stage that knows it."""

    dataset: str | None = execution(None, "Name of a data set, or a folder, instead of the recipe's.")
    root: Path | None = execution(None, "Where the named data set lies; remembered per data set.")
    backbone: str | None = setting(None, "Backbone instead of the recipe's.")
    weights: Path | None = execution(
        None, "Weights file of the backbone (.safetensors, or the original .pth)."
    )
    seed: int | None = setting(None, "Seed of every random choice.", ge=0)
    device: str | None = execution(None, "auto, cpu, cuda, cuda:1, mps, ...; default: auto.")
    workers: int | None = execution(
        None, "Processes that decode images; default: the cores, at most 8.", ge=0
    )
    batch_size: int | None = execution(None, "Images at a time; default: by memory.", ge=1)


class DemoConfig(Config):
    """The whole chain on the bundled scenes."""

    backbone: str | None = setting(None, "Backbone name instead of the bundled one.")
    seed: int | None = setting(None, "Seed of every random choice.", ge=0)
    device: str | None = execution(None, "auto, cpu, cuda, cuda:1, mps, ...; default: auto.")
    workers: int | None = execution(
        None, "Processes that decode images; default: the cores, at most 8.", ge=0
    )
    batch_size: int | None = execution(None, "Images at a time; default: by memory.", ge=1)
