"""Tables on the terminal: the scores of an evaluation, the options of a method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.table import Table

from unsupseg_cli.core.labels import OBJECTS
from unsupseg_cli.core.words import counted
from unsupseg_cli.methods.declaration import Method, Part
from unsupseg_cli.methods.registry import get_method


def score_table(summary: dict[str, Any]) -> Table:
    """Return the scores of an evaluation as a table: per class, then the means."""
    protocol = summary["protocol"]
    flip = (", flip" if protocol["flip"] else "") + (", CRF" if summary.get("crf") else "")
    matching = f"as in '{taken}'" if (taken := summary.get("matched_by")) else protocol["matching"]
    title = f"protocol {protocol['name']}{flip}, matching {matching}, {counted(summary['images'], 'image')}"
    title += ", classes named by labels of objects" if protocol["matching"] == OBJECTS else ""
    table = Table("class", "IoU %", "share of pixels %", title=title, title_justify="left", box=None)
    pixels = summary["pixels"]
    for name, iou, count in zip(summary["class_names"], summary["iou"], pixels, strict=True):
        share = 100 * count / max(1, sum(pixels))
        table.add_row(name, _percent(iou, 1), f"{share:.1f}")
    table.add_section()
    for name, key in (
        ("mIoU", "miou"),
        ("mIoU of classes in truth", "miou_gt"),
        ("mIoU of all classes", "miou_all"),
    ):
        table.add_row(name, _percent(summary[key]), "", style="bold")
    table.add_row("pixel accuracy", _percent(summary["accuracy"]), "", style="bold")
    for kind, scores in summary.get("kinds", {}).items():
        table.add_row(f"mIoU of kind {kind}", _percent(scores["miou"]), "")
        table.add_row(f"pixel accuracy of kind {kind}", _percent(scores["accuracy"]), "")
    if "hungarian" in summary:
        table.add_row(
            "mIoU, matched on these images instead", f"{100 * summary['hungarian']['miou']:.2f}", ""
        )
    if "linear_probe" in summary:
        probe = summary["linear_probe"]
        table.add_row("linear probe mIoU (supervised diagnosis)", f"{100 * probe['miou']:.2f}", "")
    return table


def _percent(value: float | None, digits: int = 2) -> str:
    return "absent" if value is None else f"{100 * value:.{digits}f}"


def object_table(summary: dict[str, Any]) -> Table:
    """Return the scores of an evaluation of masks as a table: per class, where masks have classes, then the means."""
    table = Table("objects", "AP50 %", "AP %", box=None)
    if by_class := summary.get("by_class"):
        for name, value in zip(summary["class_names"], by_class["ap50_of_class"], strict=True):
            if value is not None:
                table.add_row(name, f"{100 * value:.1f}", "")
        table.add_section()
        table.add_row("mean of classes", f"{100 * by_class['ap50']:.2f}", f"{100 * by_class['ap']:.2f}")
    table.add_row("of any class", f"{100 * summary['ap50']:.2f}", f"{100 * summary['ap']:.2f}")
    table.add_section()
    for name in ("images", "objects", "masks"):
        table.add_row(name, f"{summary[name]:,}", "")
    return table


SUMMARIES: dict[str, Callable[[dict[str, Any]], Table]] = {
    "evaluation": score_table,
    "mask-evaluation": object_table,
}
"""What a command prints of the artifact that it made, by kind."""


def method_tables(name: str, command: str) -> Iterator[Table]:
    """Yield the options that ``--set`` takes for a method under a command, a table for each part.

    Raises:
        UsageError: there is no such method, or it has no part for the command.
    """
    method = get_method(name)
    parts = (method.require_trainer(),) if command == "train" else method.labellers
    if not parts:
        method.labeller()  # says that there is none
    for part in parts:
        yield _options_table(method, part, command)


def _options_table(method: Method, part: Part, command: str) -> Table:
    named = f" --part {part.name}" if part.name else ""
    title = f"{command} --method {method.name}{named}{f': {part.summary}' if part.summary else ''}"
    table = Table("--set", "default", "bounds", "meaning", "source", title=title, box=None)
    table.title_justify = "left"
    for key, field in part.options.model_fields.items():
        source = str(part.options.note(key, "source") or "")
        table.add_row(key, str(field.default), _bounds(field.metadata), field.description or "", source)
    return table


def _bounds(metadata: list[Any]) -> str:
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    return " ".join(
        f"{sign}{getattr(bound, name)}" for bound in metadata for name, sign in signs if hasattr(bound, name)
    )
