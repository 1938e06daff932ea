"""``unsupseg list | show | verify | gc``: care of the workspace."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from unsupseg_cli.artifacts.workspace import Artifact, Workspace
from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import result
from unsupseg_cli.cli.settings import find_settings, find_workspace
from unsupseg_cli.core.errors import UnsupsegError, UsageError

_Workspace = Annotated[
    Path | None, typer.Option("--workspace", "-w", help="Folder of the artifacts.", show_default=False)
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
_err = Console(stderr=True, highlight=False)


def _open(option: Path | None) -> Workspace:
    root = find_workspace(option, find_settings(Path.cwd()))
    if not root.is_dir():
        raise UsageError(f"There is no workspace '{root}' yet; `unsupseg extract` makes it.")
    return Workspace(root)


def _guard(action: Callable[[], None]) -> None:
    run_guarded(action, verbose=False)


def _size(artifact: Artifact) -> int:
    return sum(output.bytes for output in artifact.manifest.outputs.values())


@app.command("list", rich_help_panel="Workspace")
def list_artifacts(
    kind: Annotated[str | None, typer.Argument(help="Only this kind, e.g. features or model.")] = None,
    workspace: _Workspace = None,
    as_json: _Json = False,
) -> None:
    """List the artifacts of the workspace."""

    def action() -> None:
        found = list(_open(workspace).artifacts(kind))
        if as_json:
            rows = [json.loads(item.manifest.model_dump_json()) | {"path": str(item.path)} for item in found]
            result(json.dumps(rows, indent=1))
            return
        table = Table("kind", "id", "made", "seconds", "MB", "labels", box=None)
        for item in found:
            m = item.manifest
            size = f"{_size(item) / 1e6:.1f}"
            table.add_row(m.kind, m.id, m.started, f"{m.seconds:.1f}", size, "used" if m.used_labels else "")
        Console(highlight=False, soft_wrap=True).print(table)

    _guard(action)


@app.command("show", rich_help_panel="Workspace")
def show(
    reference: Annotated[str, typer.Argument(help="Id, beginning of an id, or path.")],
    workspace: _Workspace = None,
    as_json: _Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print an evaluation's scores as CSV.")] = False,
) -> None:
    """Show one artifact: what it is, what it was made from, what it found."""

    def action() -> None:
        artifact = _open(workspace).get(reference)
        if as_csv:
            result(_scores_csv(artifact).rstrip("\n"))
        elif as_json:
            result(artifact.manifest.model_dump_json(indent=1))
        else:
            _print_manifest(artifact)

    _guard(action)


def _scores_csv(artifact: Artifact) -> str:
    if artifact.manifest.kind != "evaluation":
        raise UsageError(
            f"--csv prints the scores of an evaluation; '{artifact.id}' is '{artifact.manifest.kind}'."
        )
    summary = artifact.manifest.summary
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["name", "value"])
    for key in ("accuracy", "miou", "miou_gt", "miou_all"):
        writer.writerow([key, summary[key]])
    for name, iou in zip(summary["class_names"], summary["iou"], strict=True):
        writer.writerow([f"iou/{name}", "" if iou is None else iou])
    return buffer.getvalue()


def _print_manifest(artifact: Artifact) -> None:
    m = artifact.manifest
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{m.id}[/bold] ({m.kind}, format {m.format_version})\n{artifact.path}")
    table = Table(box=None, show_header=False)
    rows: dict[str, Any] = {
        "key": m.key,
        "digest": m.digest,
        "made": f"{m.started}, {m.seconds:.1f} s, peak {m.peak_memory_bytes / 2**30:.2f} GiB",
        "images": f"{m.data.dataset}/{m.data.split}, {m.data.count}" if m.data else "-",
        "labels": "used" if m.used_labels else "not used",
        "deterministic": "yes" if m.deterministic else "no (device kernels)",
    }
    rows |= {f"input {item.role}": item.id for item in m.inputs}
    rows |= {f"config {key}": value for key, value in m.config.items()}
    rows |= {
        f"summary {key}": value for key, value in m.summary.items() if not isinstance(value, list | dict)
    }
    rows |= {f"warning {i + 1}": text for i, text in enumerate(m.warnings)}
    for key, value in rows.items():
        table.add_row(key, str(value))
    console.print(table)


@app.command("verify", rich_help_panel="Workspace")
def verify(
    references: Annotated[list[str] | None, typer.Argument(help="Ids; default: everything.")] = None,
    workspace: _Workspace = None,
) -> None:
    """Check files against their digests, and inputs against what they were."""

    def action() -> None:
        space = _open(workspace)
        found = [space.get(one) for one in references] if references else list(space.artifacts())
        problems = [problem for item in found for problem in space.verify(item)]
        problems += [] if references else space.damaged()
        for problem in problems:
            _err.print(problem, soft_wrap=True)
        if problems:
            raise UnsupsegError(f"{len(problems)} problems; run the stages named above with --force.")
        _err.print(f"{len(found)} artifacts are whole")

    _guard(action)


@app.command("gc", rich_help_panel="Workspace")
def collect(
    workspace: _Workspace = None,
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
        space = _open(workspace)
        targets = space.leftovers(shared=shared)
        for one in remove or []:
            artifact = space.get(one)
            if children := space.children(artifact):
                raise UsageError(
                    f"'{artifact.id}' is the input of {', '.join(child.id for child in children)}; remove these too."
                )
            targets.append(artifact.path)
        for path in targets:
            _err.print(f"{'removed' if yes else 'would remove'} {path}", soft_wrap=True)
            if yes:
                shutil.rmtree(path)
        if targets and not yes:
            _err.print("nothing was deleted: call again with --yes")

    _guard(action)
