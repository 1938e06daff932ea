"""verify: Check files against their digests, and inputs against what they were."""

from __future__ import annotations

from typing import Annotated

import typer

from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import TerminalReporter, say
from unsupseg_cli.cli.workspace import CacheOption, CacheSizeOption, WorkspaceOption, open_workspace
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.words import are, counted
from unsupseg_cli.methods.registry import not_installed

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
        problems = [problem for of_step in tracked for problem in of_step]
        problems += [] if references else space.damaged()
        for problem in problems:
            say(problem)
        if problems:
            raise UnsupsegError(
                f"{len(problems)} problem{'s' * (len(problems) > 1)}; run the stages named above with --force."
            )
        for artifact in artifacts:
            if remark := not_installed(artifact.manifest.config):
                say(f"{artifact.id}: made by the {remark}")
        say(f"{counted(len(artifacts), 'artifact')} {are(len(artifacts))} whole")

    run_guarded(action, verbose=False)
