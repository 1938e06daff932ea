"""Who does the work of a call: this process, or an engine that is chosen by name. Imports an engine when it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.context import Context
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.core.config import Config
    from unsupseg_cli.methods.declaration import MethodOptions
    from unsupseg_cli.pipeline.stage import Stage

_ENGINES = {"ray": "unsupseg_cli.pipeline.ray_executor"}
"""Modules with a function ``connect(address)``, a context manager of a `Perform`."""


class Perform(Protocol):
    """Makes or reuses the artifact of a call, as `pipeline.stage.perform` does in this process."""

    def __call__(
        self,
        stage: Stage,
        config: Config,
        context: Context,
        *,
        options: MethodOptions | None = None,
        inputs: Mapping[str, Artifact] | None = None,
    ) -> Artifact | None:
        """Return the artifact, or None while other processes have a part of it to make."""


@contextmanager
def executor(name: str | None, address: str | None) -> Iterator[Perform]:
    """Yield what performs calls: with an engine of this name, at an address, else in this process.

    Raises:
        UsageError: the engine does not answer at the address, or what it offers does not fit this machine.
    """
    if name is None:
        from unsupseg_cli.pipeline.stage import perform

        yield perform
        return
    engine: Any = import_module(_ENGINES[name])
    with engine.connect(address) as elsewhere:
        yield elsewhere
