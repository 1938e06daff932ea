"""gc: Remove drafts of interrupted calls, and artifacts named with --remove."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import TerminalReporter, say
from unsupseg_cli.cli.workspace import CacheOption, CacheSizeOption, WorkspaceOption, open_workspace
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.words import counted

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.workspace import Workspace

_LARGEST = 5  # artifacts that are named

app = typer.Typer()


@app.command("gc")
def collect(
    workspace: WorkspaceOption = None,
    cache: CacheOption = None,
    cache_size: CacheSizeOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only list.")] = False,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared", help="Also drafts of --shard and --devices: other shares may be yet to come."
        ),
    ] = False,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="Also this artifact; repeat it.", show_default=False)
    ] = None,
) -> None:
    """Remove drafts of interrupted calls, and artifacts named with --remove."""

    def action() -> None:
        space = open_workspace(workspace, cache, cache_size)
        targets = space.leftovers(shared=shared)
        if not targets and not remove:
            say("nothing to remove: no draft was left by an interrupted call")
        for reference in remove or []:
            artifact = space.get(reference)
            if children := space.children(artifact):
                raise UsageError(
                    f"'{artifact.id}' is the input of {', '.join(child.id for child in children)}; remove these too."
                )
            targets.append(artifact.place)
        for path in targets:
            space.require_own(path)
        if unread := space.unreadable():
            TerminalReporter().warn(
                f"{counted(len(unread), 'artifact')} whose manifest cannot be read (the first: '{unread[0]}') "
                f"{'stays' if len(unread) == 1 else 'stay'}: `unsupseg verify` says why"
            )
        for path in targets:
            if yes:
                space.remove(path)
            say(f"{'removed' if yes else 'would remove'} {path}")
        if targets and not yes:
            say("nothing was deleted: call again with --yes")
        if not remove:
            _tell_largest(space)

    run_guarded(action)


def _tell_largest(space: Workspace) -> None:
    """Say which artifacts take most of the disk: each is made again by the call that made it."""
    entries = [listed.entry for listed in space.listed()]
    used = Counter(key for entry in entries for *_, key in entry.inputs)
    largest = sorted(entries, key=lambda entry: -entry.bytes)[:_LARGEST]
    if not largest:
        return
    say(
        f"what takes most of {sum(entry.bytes for entry in entries) / 1e6:,.1f} MB, and is made again by the same call:"
    )
    for entry in largest:
        made = (
            f"{counted(used[entry.key], 'artifact')} made of it"
            if used[entry.key]
            else f"--remove {entry.id}"
        )
        say(f"  {entry.bytes / 1e6:,.1f} MB  {entry.kind} '{entry.id}': {made}")
