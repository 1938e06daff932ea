"""verify: Check files against their digests, and inputs against what they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import TerminalReporter, say
from unsupseg_cli.cli.workspace import CacheOption, CacheSizeOption, WorkspaceOption, open_workspace
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.words import are, counted
from unsupseg_cli.methods.registry import not_installed

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.workspace import Artifact, Workspace

app = typer.Typer()


@app.command("verify")
def verify(
    references: Annotated[list[str] | None, typer.Argument(help="Ids; default: everything.")] = None,
    workspace: WorkspaceOption = None,
    cache: CacheOption = None,
    cache_size: CacheSizeOption = None,
) -> None:
    """Check files against their digests, and inputs against what they were."""

    def action() -> None:
        space = open_workspace(workspace, cache, cache_size)
        artifacts = [space.get(reference) for reference in references or ()] or list(space.artifacts())
        steps = (of_step for artifact in artifacts for of_step in space.verifying(artifact))
        count = sum(len(artifact.manifest.outputs) + 1 for artifact in artifacts)
        tracked = TerminalReporter().track(steps, "verify", total=count)
        found = [problem for of_step in tracked for problem in of_step]
        found += [] if references else space.damaged()
        problems = list(dict.fromkeys(found))  # a damaged artifact is met again by each one made of it
        for problem in problems:
            say(problem)
        if problems:
            raise UnsupsegError(
                f"{counted(len(problems), 'problem')}: run what made the artifacts named above again with --force."
            )
        for artifact in artifacts:
            if remark := not_installed(artifact.manifest.config):
                say(f"{artifact.id}: made by the {remark}")
        for name, made in sorted(_gone(space, artifacts).items()):
            say(
                f"{name}, which {', '.join(sorted(made))} {'was' if len(made) == 1 else 'were'} made from, is gone"
            )
        say(f"{counted(len(artifacts), 'artifact')} {are(len(artifacts))} whole")

    run_guarded(action)


def _gone(space: Workspace, artifacts: Sequence[Artifact]) -> dict[str, set[str]]:
    """Return which inputs are not in the workspace, each with the artifacts that were made from it."""
    gone: dict[str, set[str]] = {}
    for artifact in artifacts:
        for item in artifact.manifest.inputs:
            if space.find_key(item.kind, item.key) is None:
                gone.setdefault(f"{item.kind} '{item.id}'", set()).add(artifact.id)
    return gone
