"""A registry maps a name to an object that is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from unsupseg_cli.core.errors import UsageError, did_you_mean


class Registry:
    """Names of one kind of thing (backbone, method, ...), each a ``module:attribute`` to import late."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._targets: dict[str, str] = {}

    def add(self, name: str, target: str) -> None:
        """Register ``name`` as the object at ``target`` (``package.module:attribute``)."""
        self._targets[name] = target

    def load(self, name: str) -> Any:
        """Import and return the object; raises UsageError with a suggestion for an unknown name."""
        if name not in self._targets:
            raise UsageError(f"Unknown {self.kind} '{name}'{did_you_mean(name, self._targets)}")
        module, attribute = self._targets[name].split(":")
        return getattr(import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __contains__(self, name: object) -> bool:
        return name in self._targets
