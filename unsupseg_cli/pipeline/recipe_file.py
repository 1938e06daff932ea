"""Reading recipes: a published setting as an ordered list of stages, written in TOML. This module imports no torch."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UsageError, did_you_mean
from unsupseg_cli.core.layers import build_config
from unsupseg_cli.core.options import DataConfig
from unsupseg_cli.pipeline.table import entries

FOLDER = Path(__file__).parents[1] / "recipes"


class Published(Config):
    """What a paper and its readers report, in percent; all may be unknown."""

    accuracy: float | None = Field(None, ge=0, le=100)
    miou: float | None = Field(None, ge=0, le=100)
    source: str = ""
    retrained: str = Field("", description="What people who trained it again report.")
    hardware: str = Field("", description="Time and memory on one GPU, or the machine, where it is known.")
    evaluation: str = Field("", description="Stage whose scores these are; default: the last evaluation.")


class _File(Config):
    name: str
    description: str
    paper: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
    published: dict[str, Any] = Field(default_factory=dict)
    stage: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class StageTable:
    """One ``[[stage]]`` as it is written: its options, its method's (``set``) and where it stands."""

    id: str
    command: str
    options: dict[str, Any]
    set: dict[str, Any]
    place: str


@dataclass(frozen=True)
class RecipeFile:
    """A recipe as it is written."""

    path: Path
    name: str
    description: str
    paper: str
    data: dict[str, Any]
    published: Published
    stages: tuple[StageTable, ...]

    @property
    def backbone(self) -> str:
        """The backbone of the first stage that names one."""
        named = (stage.options["backbone"] for stage in self.stages if "backbone" in stage.options)
        return str(next(named, ""))


def bundled() -> dict[str, Path]:
    """Return the recipes that ship with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def load_recipe(reference: str | Path) -> RecipeFile:
    """Read a recipe by the name of a bundled one or by path.

    Raises:
        UsageError: there is none, or it is not a recipe; the message names the file and the entry.
    """
    path = Path(reference)
    names = bundled()
    if os.sep not in str(reference) and path.suffix != ".toml":
        if str(reference) not in names:
            raise UsageError(
                f"No bundled recipe '{reference}'{did_you_mean(str(reference), names)} For a file of your own "
                "give its path, ending in .toml."
            )
        path = names[str(reference)]
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The recipe '{path}' is not valid TOML: {error}.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        hint = f" The bundled one is called '{path.stem}'." if path.stem in names else ""
        raise UsageError(f"The recipe '{path}' cannot be read: {reason}.{hint}") from None
    file = build_config(_File, {f"'{path}'": raw}, prefix="")
    published = build_config(Published, {f"'{path}', [published]": file.published}, prefix="")
    if unknown := set(file.data) - set(DataConfig.model_fields):
        name = sorted(unknown)[0]
        raise UsageError(
            f"Unknown option '{name}' ('{path}', [data]){did_you_mean(name, DataConfig.model_fields)}"
        )
    stages = _stages(path, file.stage)
    evaluations = [stage.id for stage in stages if stage.command == "eval"]
    if published.evaluation and published.evaluation not in evaluations:
        raise UsageError(
            f"No evaluation '{published.evaluation}' ('{path}', [published])"
            + did_you_mean(published.evaluation, evaluations)
        )
    data = _anchored(path, file.data)
    return RecipeFile(path, file.name, file.description, file.paper, data, published, stages)


def _stages(path: Path, tables: list[dict[str, Any]]) -> tuple[StageTable, ...]:
    found: list[StageTable] = []
    for number, table in enumerate(tables, 1):
        options = {key.replace("-", "_"): value for key, value in table.items()}
        command = str(options.pop("command", ""))
        if command not in entries():
            raise UsageError(
                f"'{path}', stage {number}: unknown command '{command}'{did_you_mean(command, entries())}"
            )
        repeated = sum(stage.command == command for stage in found)
        name = str(options.pop("id", f"{command}-{repeated + 1}" if repeated else command))
        if any(stage.id == name for stage in found):
            raise UsageError(f"'{path}', stage {number}: the id '{name}' is taken by an earlier stage.")
        method_options = options.pop("set", {})
        place = f"'{path}', stage {number} ({name})"
        if not isinstance(method_options, dict):
            raise UsageError(f"{place}: 'set' holds the options of a method: write set = {{ key = value }}.")
        found.append(StageTable(name, command, _anchored(path, options), method_options, place))
    return tuple(found)


def _anchored(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Read paths relative to the recipe they are written in; a data set's name is no path."""
    found = dict(values)
    folder = path.resolve().parent
    for key in {"root", "labels", "class_file", "weights"} & found.keys():
        found[key] = str(folder / str(found[key]))
    if os.sep in str(found.get("dataset", "")):
        found["dataset"] = f"{folder / str(found['dataset'])}{os.sep}"
    return found
