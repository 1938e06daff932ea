"""Reading recipes: published settings as an ordered list of stages, in TOML. This module imports no torch."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UsageError, did_you_mean
from unsupseg_cli.core.layers import build_config
from unsupseg_cli.core.options import DataConfig
from unsupseg_cli.core.paths import anchored as anchored_path
from unsupseg_cli.pipeline.table import entries

FOLDER = Path(__file__).parents[1] / "recipes"


class Published(Config):
    """What a paper and its readers report, in percent; all may be unknown."""

    accuracy: float | None = Field(None, ge=0, le=100)
    miou: float | None = Field(None, ge=0, le=100)
    ap50: float | None = Field(None, ge=0, le=100, description="Of object masks, at IoU 0.5.")
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
    tune: dict[str, Any] = Field(default_factory=dict)
    variant: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @field_validator("variant", mode="before")
    @classmethod
    def _tables(cls, variants: Any) -> Any:
        if not isinstance(variants, dict) or not all(
            isinstance(variant, dict) for variant in variants.values()
        ):
            raise ValueError("write each variant as a table of its own, [variant.NAME]")
        return variants


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
    """A recipe as it is written, with the values of its variant.

    ``tune`` holds the values that `tune` tries of each ``STAGE.key``; ``tables`` is what its file would hold if it were
    written without variants.
    """

    path: Path
    name: str
    description: str
    paper: str
    data: dict[str, Any]
    published: Published
    stages: tuple[StageTable, ...]
    variant: str = ""
    tune: dict[str, list[Any]] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """What `load_recipe` takes to read it from its file."""
        return _reference(self.path, self.variant)

    @property
    def backbone(self) -> str:
        """The backbone of the first stage that names one."""
        named = (stage.options["backbone"] for stage in self.stages if "backbone" in stage.options)
        return str(next(named, ""))


@cache
def bundled() -> dict[str, str]:
    """Return the recipes that ship with the package: where each is written, by name."""
    references = {
        _full_name(path.stem, variant): _reference(path, variant)
        for path in FOLDER.glob("*.toml")
        for variant in _read(path).get("variant", [""])
    }
    return dict(sorted(references.items()))


def load_recipe(reference: str | Path) -> RecipeFile:
    """Read a recipe by the name of a bundled one, by path, or by path and variant (``my.toml:VARIANT``).

    Raises:
        UsageError: there is none, or it is not a recipe; the message names the file and the entry.
    """
    path, variant = _locate(str(reference))
    name = _full_name(path.stem, variant)
    tables = _read(path, f" The bundled one is called '{name}'." if name in bundled() else "")
    build_config(_File, {f"'{path}'": tables}, prefix="")
    tables = _with_variant(path, tables, variant)
    source = _reference(path, variant)
    file = build_config(_File, {f"'{source}'": tables}, prefix="")
    published = build_config(Published, {f"'{source}', [published]": file.published}, prefix="")
    if unknown := set(file.data) - set(DataConfig.model_fields):
        option = sorted(unknown)[0]
        raise UsageError(
            f"Unknown option '{option}' ('{source}', [data]){did_you_mean(option, DataConfig.model_fields)}"
        )
    stages = _stages(path, source, file.stage)
    evaluations = [stage.id for stage in stages if stage.command == "eval"]
    if published.evaluation and published.evaluation not in evaluations:
        raise UsageError(
            f"No evaluation '{published.evaluation}' ('{source}', [published])"
            + did_you_mean(published.evaluation, evaluations)
        )
    data = _anchored(path, file.data)
    about = (path, file.name, file.description, file.paper, data, published, stages, variant)
    return RecipeFile(*about, _tried(f"'{source}', [tune]", file.tune), tables)


def _full_name(name: str, variant: str) -> str:
    """Return what a recipe is called."""
    return f"{name}-{variant}" if variant else name


def _reference(path: Path, variant: str) -> str:
    return f"{path}:{variant}" if variant else str(path)


def _locate(reference: str) -> tuple[Path, str]:
    """Return the file and the variant of a reference, or of the bundled recipe of that name."""
    if os.sep not in reference and ".toml" not in reference:
        names = bundled()
        if reference not in names:
            raise UsageError(
                f"No bundled recipe '{reference}'{did_you_mean(reference, names)} For a file of your own "
                "give its path, ending in .toml."
            )
        reference = names[reference]
    stem, colon, variant = reference.rpartition(".toml:")
    return (Path(f"{stem}.toml"), variant) if colon else (Path(reference), "")


def _read(path: Path, hint: str = "") -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The recipe '{path}' is not valid TOML: {error}.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"The recipe '{path}' cannot be read: {reason}.{hint}") from None


def _with_variant(path: Path, tables: dict[str, Any], variant: str) -> dict[str, Any]:
    """Return the tables of a recipe with the values of one of its variants, and without the variants.

    Raises:
        UsageError: a variant is missing, too many or unknown, it names no stage of the recipe, or changes its command.
    """
    plain = dict(tables)
    variants = plain.pop("variant", {})
    if not variants and not variant:
        return plain
    if not variants:
        raise UsageError(f"The recipe '{path}' has no variants: give '{path}' alone.")
    if not variant:
        raise UsageError(
            f"The recipe '{path}' has variants: name one of them, such as '{path}:{next(iter(variants))}'. "
            f"Known: {', '.join(variants)}."
        )
    if variant not in variants:
        raise UsageError(f"The recipe '{path}' has no variant '{variant}'{did_you_mean(variant, variants)}")
    place = f"'{path}', [variant.{variant}]"
    changes = dict(variants[variant])
    plain["name"] = _full_name(plain["name"], variant)
    if "description" in changes:
        plain["description"] += f", {changes.pop('description')}"
    stages = _by_id(str(path), plain["stage"])
    for key, values in changes.items():
        if key not in {*stages, "data", "published"}:
            known = [*stages, "data", "description", "published"]
            raise UsageError(f"{place}: the recipe has no stage '{key}'{did_you_mean(key, known)}")
        if not isinstance(values, dict):
            raise UsageError(f"{place}: '{key}' holds options: write {key}.OPTION = VALUE.")
        if key in stages and (fixed := {"command", "id"} & values.keys()):
            raise UsageError(
                f"{place}: the {min(fixed)} of a stage is the same in all variants; leave it out."
            )
        if key in stages:
            stages[key] = _merged(stages[key], values)
        else:
            plain[key] = _merged(plain.get(key, {}), values)
    plain["stage"] = list(stages.values())
    return plain


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return two tables as one; the values of the second win, key by key, in the tables inside them too."""
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def _by_id(source: str, tables: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the tables of stages by id: the one written, else the command, of a second one ``command-2``."""
    stages: dict[str, dict[str, Any]] = {}
    for number, table in enumerate(tables, 1):
        command = str(table.get("command", ""))
        if command not in entries():
            raise UsageError(
                f"'{source}', stage {number}: unknown command '{command}'{did_you_mean(command, entries())}"
            )
        repeated = sum(stage["command"] == command for stage in stages.values())
        name = str(table.get("id", f"{command}-{repeated + 1}" if repeated else command))
        if name in stages:
            raise UsageError(f"'{source}', stage {number}: the id '{name}' is taken by an earlier stage.")
        stages[name] = table
    return stages


def _stages(path: Path, source: str, tables: list[dict[str, Any]]) -> tuple[StageTable, ...]:
    stages: list[StageTable] = []
    for number, (name, table) in enumerate(_by_id(source, tables).items(), 1):
        place = f"'{source}', stage {number} ({name})"
        options = {key.replace("-", "_"): value for key, value in table.items()}
        command, method_options = str(options.pop("command")), options.pop("set", {})
        options.pop("id", None)
        if not isinstance(method_options, dict):
            raise UsageError(f"{place}: 'set' holds the options of a method: write set = {{ key = value }}.")
        stages.append(StageTable(name, command, _anchored(path, options), method_options, place))
    return tuple(stages)


def _tried(place: str, table: dict[str, Any], stage: str = "") -> dict[str, list[Any]]:
    """Return the values that are tried of each ``STAGE.key``; TOML reads one without quotes as a table of the stage.

    Raises:
        UsageError: a key has no list of values; the message names it.
    """
    tried: dict[str, list[Any]] = {}
    for key, value in table.items():
        name = f"{stage}.{key}" if stage else key
        if isinstance(value, dict) and stage:
            raise UsageError(
                f"{place}, {name}: write {stage}.OPTION = [VALUE, ...], of a method's option too."
            )
        if isinstance(value, list | dict) and not value:
            raise UsageError(f"{place}, {name}: there is no value to try.")
        if not isinstance(value, list | dict):
            raise UsageError(f"{place}, {name}: expected a list of the values to try, such as [{value}].")
        values = _tried(place, value, name) if isinstance(value, dict) else {name: value}
        if twice := values.keys() & tried.keys():
            raise UsageError(f"{place}, {min(twice)}: it is given twice, with quotes and without.")
        tried |= values
    return tried


def _anchored(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Read paths relative to the recipe they are written in; a data set's name is no path."""
    anchored = dict(values)
    folder = path.resolve().parent
    paths = {"root", "labels", "class_file", "weights", "masks_from", "images_file"}
    for key in (name for name in sorted(paths & anchored.keys()) if isinstance(anchored[name], str)):
        anchored[key] = _below(folder, anchored[key])
    if "images" in anchored:
        given = anchored["images"] if isinstance(anchored["images"], list) else [anchored["images"]]
        anchored["images"] = [name if "://" in str(name) else anchored_path(name, folder) for name in given]
    if isinstance(anchored.get("dataset"), str) and os.sep in anchored["dataset"]:
        anchored["dataset"] = f"{_below(folder, anchored['dataset'])}{os.sep}"
    return anchored


def _below(folder: Path, value: object) -> str:
    """Return a path relative to a folder; ``~`` is expanded, and an address left as it is, to be refused."""
    text = str(value)
    return text if "://" in text else str(folder / os.path.expanduser(text))  # noqa: PTH111
