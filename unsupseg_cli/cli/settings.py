"""Where option values come from: command line > recipe > unsupseg.toml > default."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unsupseg_cli.core.address import Address, is_address, is_file_address, parse_address
from unsupseg_cli.core.errors import UsageError, did_you_mean
from unsupseg_cli.core.names import visible
from unsupseg_cli.core.options import DEFAULT_WORKSPACE
from unsupseg_cli.core.paths import local_path
from unsupseg_cli.methods.registry import get_method, method_names, usable_methods
from unsupseg_cli.pipeline.options import DemoConfig, RunConfig
from unsupseg_cli.pipeline.table import entries, get_stage, stages

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.cache import Cache

SETTINGS = "unsupseg.toml"
_PATHS = {"root", "labels", "class_file", "weights", "masks_from", "images_file"}
_PLACES = {"workspace", "cache", "cache_size"}
_SET = "set"


@dataclass(frozen=True)
class Settings:
    """The content of the nearest ``unsupseg.toml``: top-level values and one table per command.

    In the table of `pseudolabel` or `train`, a table with a method's name (and in it one with a part's) holds options
    of that method, and ``set`` those of whichever method is used.
    """

    path: Path | None
    values: dict[str, Any]

    def for_command(self, command: str, fields: set[str]) -> dict[str, Any]:
        """Return the values that apply to a command: the top-level ones it knows, then its own table.

        Raises:
            UsageError: a table or a value of the file is of no command.
        """
        self._check()
        top = {key.replace("-", "_"): value for key, value in self.values.items()}
        shared = {k: v for k, v in top.items() if not isinstance(v, dict) and k in fields}
        command_values = {
            key.replace("-", "_"): value
            for key, value in self._table(command).items()
            if not isinstance(value, dict)
        }
        return {key: self._anchor(key, value) for key, value in {**shared, **command_values}.items()}

    def for_method(self, command: str, method: str, part: str = "") -> dict[str, Any]:
        """Return the values that apply to the options of a method: ``set``, its table, and in it that of its part."""
        self._check()
        table = self._table(command)
        layers = [self._set(command, method, part), table.get(method, {})]
        layers.append(layers[1].get(part, {}) if part else {})
        return {
            key.replace("-", "_"): value
            for layer in layers
            for key, value in layer.items()
            if not isinstance(value, dict)
        }

    def _set(self, command: str, method: str, part: str) -> dict[str, Any]:
        """Return the options of ``set`` that the part of a method has, or that no method has: a typing mistake."""
        stage, values = get_stage(command), self._table(command).get(_SET, {})
        fields = set(stage.part(get_method(method), part or None).options.model_fields)
        elsewhere = {
            name
            for other in usable_methods()
            for other_part in other.parts
            for name in other_part.options.model_fields
        }
        return {
            key: value
            for key, value in values.items()
            if key.replace("-", "_") in fields or key.replace("-", "_") not in elsewhere
        }

    def _table(self, command: str) -> dict[str, Any]:
        table = self.values.get(command, {})
        if not isinstance(table, dict):
            raise UsageError(f"[{command}] in '{self.path}' must be a table of options.")
        return table

    def _check(self) -> None:
        """Raise UsageError for what no command reads: a typing mistake would else stay without effect."""
        if not self.values:
            return  # the options of all commands take a tenth of a second to load
        table_of_stages = stages()
        options = _PLACES.union(*(stage.config.model_fields for stage in table_of_stages.values()))
        options |= RunConfig.model_fields.keys() | DemoConfig.model_fields.keys()
        for key, value in self.values.items():
            if isinstance(value, dict) and key not in entries():
                raise UsageError(f"Unknown table [{key}] in '{self.path}'{did_you_mean(key, entries())}")
            if not isinstance(value, dict) and key.replace("-", "_") not in options | set(entries()):
                raise UsageError(f"Unknown option '{key}' in '{self.path}'{did_you_mean(key, options)}")
        for command, stage in table_of_stages.items():
            for key, value in self._table(command).items():
                names = [_SET, *method_names()] if stage.uses else []
                if not isinstance(value, dict):
                    if key in names:
                        raise UsageError(f"[{command}.{key}] in '{self.path}' must be a table of options.")
                    continue
                if key not in names:
                    raise UsageError(
                        f"Unknown table [{command}.{key}] in '{self.path}'"
                        f"{did_you_mean(key, names) if names else '; this command has no method.'}"
                    )
                self._check_parts(command, key, value)

    def _check_parts(self, command: str, method: str, table: dict[str, Any]) -> None:
        """Raise UsageError for a table in that of a method which is of none of its parts."""
        inner = [key for key, value in table.items() if isinstance(value, dict)]
        if inner and method != _SET:
            parts = [part.name for part in get_method(method).labellers if part.name]
            for key in set(inner) - set(parts):
                hint = did_you_mean(key, parts) if parts else "; this method has no parts."
                raise UsageError(f"Unknown table [{command}.{method}.{key}] in '{self.path}'{hint}")

    def _anchor(self, key: str, value: Any) -> Any:
        """Read paths relative to the file they are written in."""
        if key in _PATHS and isinstance(value, str) and self.path:
            return value if "://" in value else str(self.path.parent / os.path.expanduser(value))  # noqa: PTH111
        return value


def find_settings(start: Path) -> Settings:
    """Read the ``unsupseg.toml`` of a folder or its nearest parent that has one; raises UsageError for bad TOML."""
    for folder in (start, *start.parents):
        path = folder / SETTINGS
        if path.is_file():
            try:
                return Settings(path, tomllib.loads(path.read_text(encoding="utf-8-sig")))
            except tomllib.TOMLDecodeError as error:
                raise UsageError(f"'{path}' is not valid TOML: {error}.") from None
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"'{path}' cannot be read as UTF-8 text ({error}); mend the file.") from None
    return Settings(None, {})


def find_cache(folder: Path | None, size: str | None, settings: Settings) -> Cache:
    """Return the cache: --cache, $UNSUPSEG_CACHE, unsupseg.toml, the user's folder of caches; likewise its size.

    Raises:
        UsageError: the folder is an address, or the size is none.
    """
    from unsupseg_cli.artifacts.cache import DEFAULT_BYTES, Cache, default_folder, parse_bytes

    given = folder or os.environ.get("UNSUPSEG_CACHE") or settings.values.get("cache")
    most = size or os.environ.get("UNSUPSEG_CACHE_SIZE") or settings.values.get("cache_size")
    try:
        place = Path(local_path(str(given))) if given else default_folder()
        if given and folder is None and not os.environ.get("UNSUPSEG_CACHE") and settings.path is not None:
            place = settings.path.parent / place
        return Cache(place, parse_bytes(str(most)) if most else DEFAULT_BYTES)
    except ValueError as error:
        raise UsageError(f"The cache: {error}.") from None


def find_workspace(option: Path | None, settings: Settings) -> Path | Address:
    """Return the workspace: --workspace, $UNSUPSEG_WORKSPACE, unsupseg.toml, ./unsupseg-workspace.

    Raises:
        UsageError: the address is malformed, or the path has control characters: then the path of an artifact were no
            line of stdout.
    """
    given = str(
        option or os.environ.get("UNSUPSEG_WORKSPACE") or settings.values.get("workspace", DEFAULT_WORKSPACE)
    )
    try:
        if is_address(given) and not is_file_address(given):
            return parse_address(given)
        workspace = Path(local_path(given))
    except ValueError as error:
        raise UsageError(f"The workspace: {error}.") from None
    if option is None and not os.environ.get("UNSUPSEG_WORKSPACE") and settings.path is not None:
        workspace = settings.path.parent / workspace
    if visible(str(workspace)) != str(workspace):
        raise UsageError(
            f"The workspace '{workspace}' has control characters in its path, and commands print one path on one line: "
            "name another folder with --workspace."
        )
    return workspace


def parse_assignments(pairs: Sequence[str], option: str = "--set", form: str = "key=value") -> dict[str, Any]:
    """Return the values of ``--set key=value`` by key; they are TOML, a bare word is a string.

    Raises:
        UsageError: one has no key or no ``=``, or a key is given twice; the message names the ``option``.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, value = parse_assignment(pair, option, form)
        if key in values:
            raise UsageError(f"{option} {key} is given twice; one of them would be read by nothing.")
        values[key] = value
    return values


def parse_assignment(pair: str, option: str = "--set", form: str = "key=value") -> tuple[str, Any]:
    """Return key and value of one ``key=value``, as `parse_assignments` does."""
    key, equals, text = pair.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{option} '{pair}' is not of the form {form}.")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text
