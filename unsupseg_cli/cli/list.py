"""list: List the artifacts of the workspace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import TerminalReporter, print_columns, result
from unsupseg_cli.cli.workspace import (
    CacheOption,
    CacheSizeOption,
    JsonOption,
    WorkspaceOption,
    open_workspace,
)
from unsupseg_cli.core.errors import UsageError, did_you_mean
from unsupseg_cli.core.words import counted
from unsupseg_cli.methods.registry import not_installed
from unsupseg_cli.pipeline.table import stages

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.index import Entry

app = typer.Typer()


def _require_kind(kind: str, there: list[str]) -> None:
    """Raise UsageError for a kind that no stage makes and the workspace does not hold."""
    known = {*there, *(made for stage in stages().values() for made in (stage.makes, *stage.also.values()))}
    known |= {"scan", "tuning"}  # which `classes scan` and `tune` make
    if kind not in known:
        known.discard("")  # of a stage that makes no artifact
        raise UsageError(f"There is no kind of artifacts '{kind}'{did_you_mean(kind, known)}")


def _inherited(
    setting: str, entry: Entry, entries: Mapping[str, Entry], above: frozenset[str] = frozenset()
) -> str:
    """Return a setting of an artifact, or of those that it was made from; empty where none is known.

    ``entries`` are all of the workspace, by key; ``above`` those that lead here, since a changed manifest may go round.
    """
    if own := entry.settings.get(setting):
        return str(own)
    inputs = (entries[key] for *_, key in entry.inputs if key in entries and key not in above)
    behind = (_inherited(setting, before, entries, above | {entry.key}) for before in inputs)
    return next(filter(None, behind), "")


@app.command("list")
def list_artifacts(
    kind: Annotated[str | None, typer.Argument(help="Only this kind, e.g. features or model.")] = None,
    workspace: WorkspaceOption = None,
    cache: CacheOption = None,
    cache_size: CacheSizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the artifacts of the workspace."""

    def action() -> None:
        space = open_workspace(workspace, cache, cache_size)
        if kind is not None:
            _require_kind(kind, space.kinds())
        listed = sorted(space.listed(kind), key=lambda item: item.entry.started)
        if damaged := space.unreadable(kind):
            TerminalReporter().warn(
                f"{counted(len(damaged), 'artifact')} left out, whose manifest cannot be read (the first: "
                f"'{damaged[0]}'): `unsupseg verify` says why"
            )
        if as_json:
            rows = [
                json.loads(artifact.manifest.model_dump_json()) | {"path": str(artifact.place)}
                for artifact in (item.open() for item in listed)
            ]
            result(json.dumps(rows, indent=1))
            return
        entries, rows = {item.entry.key: item.entry for item in space.listed()}, []
        for entry in (item.entry for item in listed):
            remarks = [*(["used labels"] if entry.used_labels else []), not_installed(entry.settings)]
            row = (
                entry.kind,
                entry.id,
                _inherited("backbone", entry, entries),
                _inherited("classes", entry, entries),
                " ".join(used for _, _, used, _ in entry.inputs),
                entry.started,
                f"{entry.seconds:.1f}",
                f"{entry.bytes / 1e6:.1f}",
                "; ".join(filter(None, remarks)),
            )
            rows.append(row)
        print_columns(("kind", "id", "backbone", "K", "made from", "made", "seconds", "MB", "remarks"), rows)

    run_guarded(action)
