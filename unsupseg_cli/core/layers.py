"""A configuration from layers of values: which name comes from where, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UsageError, did_you_mean

ConfigT = TypeVar("ConfigT", bound=Config)


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
        text = str(first["msg"]).removeprefix("Value error, ")
        reason = text[:1].lower() + text[1:]
        if not first["loc"]:
            sources = " and ".join(source for source, values in layers.items() if values)
            raise UsageError(f"The options ({sources}) do not go together: {reason}.") from None
        key = str(first["loc"][0])
        option = f"{prefix}{key.replace('_', '-') if prefix == '--' else key}"
        if first["type"] == "missing":
            raise UsageError(f"{option} is required.") from None
        raise UsageError(
            f"{option} '{first['input']}' ({origin.get(key, 'default')}) does not fit: {reason}."
        ) from None


def explain(config: Config, layers: Mapping[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return (option, value, where it came from) of every field."""
    rows = []
    for name in type(config).model_fields:
        source = next((layer for layer, values in layers.items() if name in values), "default")
        rows.append((name, str(getattr(config, name)), source))
    return rows
