"""Opening a workspace by its place: a folder, or an address in object storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unsupseg_cli.artifacts.cache import Cache
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.core.address import Address, is_address, parse_address
from unsupseg_cli.core.errors import UsageError


def open_workspace(
    place: str | Path | Address, cache: Cache | None = None, tell: Callable[[str], None] | None = None
) -> Workspace:
    """Return the workspace in a folder, or at an address such as ``s3://bucket/prefix``.

    Args:
        place: of the workspace.
        cache: where the artifacts of an address are kept on this machine; default: that of the environment.
        tell: is told when the endpoint does not answer, and what is fetched.

    Raises:
        UsageError: the address is malformed, or the extra `cloud` is missing.
    """
    if not isinstance(place, Address) and not is_address(place):
        return Workspace(Path(place))
    from unsupseg_cli.storage.remote import RemoteWorkspace

    try:
        address = place if isinstance(place, Address) else parse_address(place)
    except ValueError as error:
        raise UsageError(f"The workspace: {error}.") from None
    return RemoteWorkspace(address, cache or Cache.of_environment(), tell)
