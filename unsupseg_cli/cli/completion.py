"""What the Tab key offers for a value: names and choices. Modules that know names are imported when it is pressed."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

Completer = Callable[[str], list[str]]
"""The beginning of a value -> the values that begin so."""


def methods(incomplete: str) -> list[str]:
    """Complete the name of a method, plug-ins included."""
    from unsupseg_cli.methods.registry import method_names

    return _beginning(method_names(), incomplete)


def recipes(incomplete: str) -> list[str]:
    """Complete the name of a bundled recipe."""
    from unsupseg_cli.pipeline.recipe_file import bundled

    return _beginning(bundled(), incomplete)


def datasets(incomplete: str) -> list[str]:
    """Complete the name of a data set."""
    from unsupseg_cli.data.layouts import LAYOUTS

    return _beginning(LAYOUTS, incomplete)


def backbones(incomplete: str) -> list[str]:
    """Complete the name of a backbone."""
    from unsupseg_cli.models.backbones import ALIASES

    return _beginning(ALIASES, incomplete)


def protocols(incomplete: str) -> list[str]:
    """Complete the name of a protocol of evaluation."""
    from unsupseg_cli.metrics.protocols import PROTOCOLS

    return _beginning(PROTOCOLS, incomplete)


_FIELDS: dict[str, Completer] = {
    "method": methods,
    "dataset": datasets,
    "backbone": backbones,
    "protocol": protocols,
}


def completer(name: str, annotation: Any) -> Completer | None:
    """Return what completes the option of a field, by its name or its choices; None where a path or number stands."""
    words = choices(annotation)
    if words:
        return lambda incomplete: _beginning(words, incomplete)
    return _FIELDS.get(name)


def choices(annotation: Any) -> list[str]:
    """Return the words of a Literal, also where it is one of several types; none of anything else."""
    if typing.get_origin(annotation) is typing.Literal:
        return [str(word) for word in typing.get_args(annotation)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [word for member in typing.get_args(annotation) for word in choices(member)]
    return []


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
