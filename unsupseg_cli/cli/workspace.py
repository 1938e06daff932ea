"""What the commands that care for the workspace share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from unsupseg_cli.cli.console import TerminalReporter
from unsupseg_cli.cli.settings import Settings, find_cache, find_settings, find_workspace
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.storage.address import Address

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.workspace import Workspace

WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        "-w",
        help="Folder of the artifacts, or an address such as s3://BUCKET/PREFIX, gs:// or az:// (extra cloud).",
        show_default=False,
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder in which what lies in object storage is kept on this machine; default: $UNSUPSEG_CACHE, else "
        "~/.cache/unsupseg.",
        show_default=False,
    ),
]
CacheSizeOption = Annotated[
    str | None,
    typer.Option(
        "--cache-size",
        help="How large that folder may become, such as 200GB; default: $UNSUPSEG_CACHE_SIZE, else 50GB.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
err = Console(stderr=True, highlight=False)


def open_workspace(
    option: Path | None, cache: Path | None = None, cache_size: str | None = None, *, new: bool = False
) -> Workspace:
    """Return the workspace of a call; raises UsageError where there is none yet, unless it may be ``new``."""
    settings = find_settings(Path.cwd())
    space = open_place(
        find_workspace(option, settings), (cache, cache_size), settings, TerminalReporter().info
    )
    if not new and not space.exists():
        raise UsageError(f"There is no workspace '{space}' yet; `unsupseg extract` makes it.")
    return space


def open_place(
    place: Path | Address,
    cache: tuple[Path | None, str | None],
    settings: Settings,
    tell: Callable[[str], None],
) -> Workspace:
    """Return the workspace at a place; raises UsageError where options of the ``cache`` have no effect on it."""
    if isinstance(place, Path):
        if cache != (None, None):
            raise UsageError(
                f"--cache and --cache-size have no effect: the workspace '{place}' is a folder on this machine."
            )
        from unsupseg_cli.artifacts.workspace import Workspace

        return Workspace(place)
    from unsupseg_cli.storage import open as storage
    from unsupseg_cli.storage.cache import Cache

    return storage.open_workspace(place, Cache(*find_cache(*cache, settings)), tell)
