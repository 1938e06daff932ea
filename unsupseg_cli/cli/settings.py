"""Where option values come from: command line > recipe > unsupseg.toml > default."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UsageError, did_you_mean

SETTINGS = "unsupseg.toml"
DEFAULT_WORKSPACE = "unsupseg-workspace"
ConfigT = TypeVar("ConfigT", bound=Config)


@dataclass(frozen=True)
class Settings:
    """The content of the nearest ``unsupseg.toml``: top-level values and one table per command."""

    path: Path | None
    values: dict[str, Any]

    def for_command(self, command: str, fields: set[str]) -> dict[str, Any]:
        """Return the values that apply to a command: the top-level ones it knows, then its own table."""
        shared = {k: v for k, v in self.values.items() if not isinstance(v, dict) and k in fields}
        own = self.values.get(command, {})
        if not isinstance(own, dict):
            raise UsageError(f"[{command}] in '{self.path}' must be a table of options.")
        values = {**shared, **{key.replace("-", "_"): value for key, value in own.items()}}
        return {key: self._anchor(key, value) for key, value in values.items()}

    def _anchor(self, key: str, value: Any) -> Any:
        """Read paths relative to the file they are written in."""
        if key in {"root", "labels", "class_file", "weights"} and isinstance(value, str) and self.path:
            return str(self.path.parent / value)
        return value


def find_settings(start: Path) -> Settings:
    """Read the ``unsupseg.toml`` of a folder or its nearest parent that has one."""
    for folder in (start, *start.parents):
        path = folder / SETTINGS
        if path.is_file():
            try:
                return Settings(path, tomllib.loads(path.read_text(encoding="utf-8")))
            except tomllib.TOMLDecodeError as error:
                raise UsageError(f"'{path}' is not valid TOML: {error}.") from None
    return Settings(None, {})


def find_workspace(option: Path | None, settings: Settings) -> Path:
    """Return the workspace: --workspace, $UNSUPSEG_WORKSPACE, unsupseg.toml, ./unsupseg-workspace."""
    if option is not None:
        return option
    if variable := os.environ.get("UNSUPSEG_WORKSPACE"):
        return Path(variable)
    if settings.path is not None:
        return settings.path.parent / str(settings.values.get("workspace", DEFAULT_WORKSPACE))
    return Path(DEFAULT_WORKSPACE)


def parse_assignments(pairs: list[str]) -> dict[str, Any]:
    """Parse ``--set key=value``; values are TOML, a bare word is a string."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set '{pair}' is not of the form key=value.")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text
    return values


def build_config(cls: type[ConfigT], layers: Mapping[str, dict[str, Any]], prefix: str = "--") -> ConfigT:
    """Build a configuration from layers, the first of which wins.

    Raises:
        UsageError: a name is unknown (with a suggestion) or a value does not fit.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, values in reversed(list(layers.items())):
        for key, value in values.items():
            if key not in cls.model_fields:
                raise UsageError(f"Unknown option '{key}' ({source}){did_you_mean(key, cls.model_fields)}")
            merged[key], origin[key] = value, source
    try:
        return cls(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        reason = str(first["msg"]).removeprefix("Value error, ").lower()
        raise UsageError(
            f"{prefix}{key.replace('_', '-') if prefix == '--' else key} '{first['input']}' "
            f"({origin.get(key, 'default')}) does not fit: {reason}."
        ) from None


def explain(config: Config, layers: Mapping[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return (option, value, where it came from) of every field."""
    rows = []
    for name in type(config).model_fields:
        source = next((layer for layer, values in layers.items() if name in values), "default")
        rows.append((name, str(getattr(config, name)), source))
    return rows
