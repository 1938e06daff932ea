"""A configuration from layers of values: which name comes from where, and what does not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from unsupseg_cli.core.address import as_written
from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UsageError, did_you_mean

ConfigT = TypeVar("ConfigT", bound=Config)
Layers = Mapping[str, dict[str, Any]]
"""Values by name, by the place that they come from; the first place wins."""


_REASONS = {
    "int_parsing": "expected a whole number",
    "float_parsing": "expected a number",
    "bool_parsing": "expected true or false",
}
"""What pydantic says in more words."""


def build_config(
    cls: type[ConfigT],
    layers: Layers,
    prefix: str = "--",
    *,
    shared: Collection[str] = (),
    stage: Config | None = None,
) -> ConfigT:
    """Build a configuration from layers, the first of which wins.

    Args:
        cls: the configuration.
        layers: values by the place that they come from.
        prefix: of an option's name in messages.
        shared: places whose values are meant for many calls: what this call does not read is left out of them.
        stage: the configuration of the command, where ``cls`` holds the options of a method.

    Raises:
        UsageError: a name is unknown (with a suggestion), a value does not fit, or a value has no effect.
    """
    config = _validated(cls, layers, prefix)
    unread = {name: reason for name, reason in config.ineffective(stage).items() if name in _origins(layers)}
    for name, reason in unread.items():
        if (origin := _origins(layers)[name]) not in shared:
            raise UsageError(f"{option_name(name, prefix)} ({origin}) has no effect: {reason}. Leave it out.")
    if not unread:
        return config
    read = {
        place: {name: value for name, value in values.items() if place not in shared or name not in unread}
        for place, values in layers.items()
    }
    return _validated(cls, read, prefix)


def require_effect(config: Config, stage: Config | None = None, prefix: str = "--") -> None:
    """Raise UsageError for a value that has no effect beside the others."""
    for name, reason in config.ineffective(stage).items():
        raise UsageError(f"{option_name(name, prefix)} has no effect: {reason}. Leave it out.")


def option_name(name: str, prefix: str) -> str:
    """Return a field as its option is written."""
    return f"{prefix}{name.replace('_', '-') if prefix == '--' else name}"


def explain(config: Config, layers: Layers, stage: Config | None = None) -> list[tuple[str, str, str]]:
    """Return (option, value, where it came from) of every field."""
    origins, unread = _origins(layers), config.unread(stage)
    rows = []
    for name in type(config).model_fields:
        place = origins.get(name, "default")
        if place != "default" and name in unread:
            place = f"default; {place} has no effect: {unread[name]}"
        rows.append((name, _shown(getattr(config, name)), place))
    return rows


def _shown(value: Any) -> str:
    """Return a value as text: paths as they are written."""
    if isinstance(value, tuple) and any(isinstance(entry, Path) for entry in value):
        return ",".join(map(as_written, value))
    return as_written(value)


def _origins(layers: Layers) -> dict[str, str]:
    """Return the place that each value comes from."""
    return {name: place for place, values in reversed(list(layers.items())) for name in values}


def _validated(cls: type[ConfigT], layers: Layers, prefix: str) -> ConfigT:
    merged: dict[str, Any] = {}
    for place, values in reversed(list(layers.items())):
        for name, value in values.items():
            if name not in cls.model_fields:
                raise UsageError(f"Unknown option '{name}' ({place}){did_you_mean(name, cls.model_fields)}")
            merged[name] = value
    try:
        return cls(**merged)
    except ValidationError as error:
        first, *others = error.errors()
        text = str(first["msg"]).removeprefix("Value error, ")
        reason = _REASONS.get(first["type"], text[:1].lower() + text[1:])
        if first["type"] != "literal_error":  # of a number that may be a word instead, both fail
            words = [other for other in others if other["loc"][:1] == first["loc"][:1]]
            reason += "".join(
                f", or {word['ctx']['expected']}" for word in words if word["type"] == "literal_error"
            )
        if not first["loc"]:
            places = " and ".join(place for place, values in layers.items() if values)
            raise UsageError(f"The options ({places}) do not go together: {reason}.") from None
        name = str(first["loc"][0])
        if first["type"] == "missing":
            origin = "" if prefix == "--" else f" ({' and '.join(layers)})"
            if cls.note(name, "argument"):
                raise UsageError(f"Missing argument: {cls.model_fields[name].description}") from None
            raise UsageError(f"{option_name(name, prefix)} is required{origin}.") from None
        place, given = _origins(layers).get(name, "default"), first["input"]
        shown = ",".join(map(str, given)) if isinstance(given, list | tuple) else given
        label = name.upper() if prefix == "--" and cls.note(name, "argument") else option_name(name, prefix)
        raise UsageError(f"{label} '{shown}' ({place}) does not fit: {reason}.") from None
