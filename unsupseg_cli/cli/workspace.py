"""What the commands that care for the workspace share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from unsupseg_cli.cli.console import TerminalReporter
from unsupseg_cli.cli.settings import find_cache, find_settings, find_workspace
from unsupseg_cli.core.address import Address
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.paths import local_path

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.cache import Cache
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


def refuse_address(path: Path | None) -> Path | None:
    """Return the path that an option names on this machine; raises BadParameter for an address."""
    try:
        return path and Path(local_path(str(path), patterns=True))
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from None


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
err = Console(stderr=True, highlight=False)


def open_workspace(
    option: Path | None,
    cache: Path | None = None,
    cache_size: str | None = None,
    *,
    new: bool = False,
    images: bool = False,
) -> Workspace:
    """Return the workspace of a call, which may read ``images``.

    Raises:
        UsageError: there is none yet, unless it may be ``new``; or options of the cache have no effect.
    """
    settings = find_settings(Path.cwd())
    place = find_workspace(option, settings)
    if isinstance(place, Path) and (cache, cache_size) != (None, None) and not images:
        raise UsageError(
            f"--cache and --cache-size have no effect: the workspace '{place}' is a folder on this machine."
        )
    space = open_place(place, find_cache(cache, cache_size, settings), TerminalReporter().info)
    space.require_folder()
    if not new and not space.exists():
        raise UsageError(f"There is no workspace '{space}' yet; `unsupseg extract` makes it.")
    return space


def open_place(place: Path | Address, cache: Cache, tell: Callable[[str], None]) -> Workspace:
    """Return the workspace at a place; raises UnsupsegError, before any work, where a bucket is not to be had."""
    if isinstance(place, Path):
        from unsupseg_cli.artifacts.workspace import Workspace

        return Workspace(place)
    from unsupseg_cli.storage import open as storage

    space = storage.open_workspace(place, cache, tell)
    space.exists()
    return space
