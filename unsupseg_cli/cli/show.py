"""show: Show one artifact: what it is, what it was made from, what it found."""

from __future__ import annotations

import csv
import io
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unsupseg_cli.artifacts.manifest import Manifest
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import result
from unsupseg_cli.cli.workspace import (
    CacheOption,
    CacheSizeOption,
    JsonOption,
    WorkspaceOption,
    open_workspace,
)
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.names import visible
from unsupseg_cli.methods.registry import not_installed

app = typer.Typer()


@app.command("show")
def show(
    reference: Annotated[str, typer.Argument(help="Id, beginning of an id, or path.")],
    workspace: WorkspaceOption = None,
    cache: CacheOption = None,
    cache_size: CacheSizeOption = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print an evaluation's scores as CSV.")] = False,
) -> None:
    """Show one artifact: what it is, what it was made from, what it found."""

    def action() -> None:
        artifact = open_workspace(workspace, cache, cache_size).get(reference)
        if as_csv:
            result(_scores_csv(artifact).rstrip("\n"))
        elif as_json:
            result(artifact.manifest.model_dump_json(indent=1))
        else:
            _print_manifest(artifact)

    run_guarded(action)


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
    for kind, scores in summary.get("kinds", {}).items():
        for key, value in scores.items():
            writer.writerow([f"{key}/{kind}", "" if value is None else value])
    for name, iou in zip(summary["class_names"], summary["iou"], strict=True):
        writer.writerow([f"iou/{name}", "" if iou is None else iou])
    return buffer.getvalue()


def _labels(manifest: Manifest) -> str:
    """Say what labels were used for: an evaluation reads them, to score what was made without."""
    if manifest.kind == "evaluation":
        return "read for the scores" + (
            ", and used to make what is scored" if manifest.used_labels else " only"
        )
    return "used" if manifest.used_labels else "not used"


_DETERMINISTIC = "yes, on the same kind of machine at the same batch size; to rounding at another one"


def _print_manifest(artifact: Artifact) -> None:
    manifest = artifact.manifest
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"[bold]{escape(manifest.id)}[/bold] ({manifest.kind}, format {manifest.format_version})\n"
        f"{escape(visible(str(artifact.place)))}"
    )
    table = Table(box=None, show_header=False)
    rows: dict[str, Any] = {
        "key": manifest.key,
        "digest": manifest.digest,
        "made": f"{manifest.started}, {manifest.seconds:.1f} s, peak {manifest.peak_memory_bytes / 2**30:.2f} GiB",
        "images": f"{manifest.data.dataset}/{manifest.data.split}, {manifest.data.count}"
        if manifest.data
        else "-",
        "labels": _labels(manifest),
        "deterministic": _DETERMINISTIC if manifest.deterministic else "no (device kernels)",
    }
    rows |= {f"input {item.role}": item.id for item in manifest.inputs}
    rows |= {f"config {key}": value for key, value in manifest.config.items()}
    rows |= {
        f"summary {key}": value
        for key, value in manifest.summary.items()
        if not isinstance(value, list | dict)
    }
    rows |= {f"warning {i + 1}": text for i, text in enumerate(manifest.warnings)}
    if remark := not_installed(manifest.config):
        rows["remark"] = remark
    for key, value in rows.items():
        table.add_row(escape(key), escape(visible(str(value))))
    console.print(table)
