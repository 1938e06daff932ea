"""``unsupseg eval``."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from unsupseg_cli.cli.app import app
from unsupseg_cli.cli.command import Call, stage_command
from unsupseg_cli.stages.config import EvalConfig


@stage_command(app, EvalConfig, name="eval")
def evaluate(call: Call) -> None:
    """A model or predictions, and labels -> scores."""
    context = call.context()
    from unsupseg_cli.stages.evaluate import evaluate as run

    artifact = run(call.config, context)
    call.reporter.console.print(score_table(artifact.manifest.summary))
    call.done(artifact)


def score_table(summary: dict[str, Any]) -> Table:
    """Return the scores of an evaluation as a table: per class, then the means."""
    protocol = summary["protocol"]
    flip = (", flip" if protocol["flip"] else "") + (", CRF" if summary.get("crf") else "")
    title = f"protocol {protocol['name']}{flip}, matching {protocol['matching']}, {summary['images']} images"
    table = Table("class", "IoU %", "share of pixels %", title=title, title_justify="left", box=None)
    pixels = summary["pixels"]
    for name, iou, count in zip(summary["class_names"], summary["iou"], pixels, strict=True):
        share = 100 * count / max(1, sum(pixels))
        table.add_row(name, "absent" if iou is None else f"{100 * iou:.1f}", f"{share:.1f}")
    table.add_section()
    for name, key in (
        ("mIoU", "miou"),
        ("mIoU of classes in truth", "miou_gt"),
        ("mIoU of all classes", "miou_all"),
    ):
        table.add_row(f"[bold]{name}[/bold]", f"[bold]{100 * summary[key]:.2f}[/bold]", "")
    table.add_row("[bold]pixel accuracy[/bold]", f"[bold]{100 * summary['accuracy']:.2f}[/bold]", "")
    if "linear_probe" in summary:
        probe = summary["linear_probe"]
        table.add_row("linear probe mIoU (supervised diagnosis)", f"{100 * probe['miou']:.2f}", "")
    return table
