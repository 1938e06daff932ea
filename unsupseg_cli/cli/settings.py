"""Where option values come from: command line > recipe > unsupseg.toml > default."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unsupseg_cli.core.errors import UsageError

SETTINGS = "unsupseg.toml"
DEFAULT_WORKSPACE = "unsupseg-workspace"


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
