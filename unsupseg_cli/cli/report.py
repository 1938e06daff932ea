"""report: One HTML page of artifacts: scores, pictures, classes, lineage, resources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import TerminalReporter, result
from unsupseg_cli.cli.workspace import (
    CacheOption,
    CacheSizeOption,
    WorkspaceOption,
    open_workspace,
    refuse_address,
)

app = typer.Typer()


@app.command("report")
def report(
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARTIFACT",
            help="Ids or paths; default: the last evaluation, else predictions, else model.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file.", callback=refuse_address)] = Path(
        "report.html"
    ),
    workspace: WorkspaceOption = None,
    cache: CacheOption = None,
    cache_size: CacheSizeOption = None,
) -> None:
    """One HTML page of artifacts, without network and scripts: scores, pictures, classes, lineage, resources.

    Several evaluations stand side by side. What is missing, such as images that are gone, is said on the page.
    """

    def action() -> None:
        from unsupseg_cli.artifacts.context import Context
        from unsupseg_cli.pipeline.report import last_artifact, write_report

        space = open_workspace(workspace, cache, cache_size, images=True)
        artifacts = [space.get(reference) for reference in references or ()] or [last_artifact(space)]
        reporter = TerminalReporter()
        page = write_report(artifacts, out, Context(space, reporter))
        reporter.info(f"report of {page.title}, {out.stat().st_size / 1e6:.1f} MB")
        if page.notes:
            missing = "something is" if len(page.notes) == 1 else f"{len(page.notes)} things are"
            reporter.info(f"{missing} missing on it; its end says what and why")
        result(str(out))

    run_guarded(action)
