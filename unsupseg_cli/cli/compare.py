"""compare: Evaluations side by side, mean and deviation over seeds."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from unsupseg_cli.cli.command import run_guarded
from unsupseg_cli.cli.console import TerminalReporter, print_table, result
from unsupseg_cli.cli.workspace import CacheOption, CacheSizeOption, WorkspaceOption, open_workspace
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.names import cell
from unsupseg_cli.core.words import counted

if TYPE_CHECKING:
    from unsupseg_cli.pipeline.compare import Comparison, Row

_TITLES = ("accuracy %", "mIoU %", "mIoU in truth %", "mIoU all %")


app = typer.Typer()


@app.command("compare")
def compare(
    evaluations: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EVALUATION",
            help="Ids or paths; default: the last one, and all that may stand beside it.",
        ),
    ] = None,
    workspace: WorkspaceOption = None,
    cache: CacheOption = None,
    cache_size: CacheSizeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, one line per setting.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Evaluations side by side, mean and deviation over seeds; never of two protocols, data sets or splits."""

    def action() -> None:
        if as_json + as_csv + as_markdown > 1:
            raise UsageError("--json, --csv and --markdown exclude each other; give one.")
        from unsupseg_cli.pipeline.compare import beside_the_last
        from unsupseg_cli.pipeline.compare import compare as run

        space = open_workspace(workspace, cache, cache_size)
        named = [space.get(reference, "evaluation") for reference in evaluations or ()]
        comparison = run(named or beside_the_last(space, TerminalReporter()))
        if as_json:
            rows = [row.to_json() for row in comparison.rows]
            value = {"dataset": comparison.dataset, "split": comparison.split, "images": comparison.images}
            result(json.dumps({**value, "protocol": comparison.protocol, "rows": rows}, indent=1))
        elif as_csv:
            result(_csv(comparison))
        elif as_markdown:
            result(_markdown(comparison))
        else:
            table = Table(*_header(), title=_title(comparison), title_justify="left", box=None)
            for row in comparison.rows:
                table.add_row(*_cells(row))
            print_table(table)

    run_guarded(action)


def _title(comparison: Comparison) -> str:
    protocol = comparison.protocol
    size = protocol["size"] or "model's"
    flip = "mirrored too" if protocol["flip"] else "not mirrored"
    return (
        f"{comparison.dataset}/{comparison.split}, {counted(comparison.images, 'image')}; "
        f"protocol {protocol['name']}: {protocol['geometry']}, size {size}, {protocol['filter']}, {flip}, "
        f"matching {protocol['matching']}"
    )


def _header() -> tuple[str, ...]:
    return ("method", "clusters", "backbone", "CRF", "seeds", *_TITLES, "labels", "setting")


def _cells(row: Row) -> list[str]:
    from unsupseg_cli.pipeline.compare import SCORES

    seeds = ", ".join(map(str, row.seeds))
    scores = [_score(row.mean(name), row.deviation(name)) for name in SCORES]
    used, crf = "used" if row.used_labels else "", "yes" if row.crf else "no"
    return [row.method, str(row.classes), row.backbone, crf, seeds, *scores, used, row.setting]


def _score(mean: float, deviation: float | None) -> str:
    return f"{100 * mean:.2f}" if deviation is None else f"{100 * mean:.2f} ± {100 * deviation:.2f}"


def _markdown(comparison: Comparison) -> str:
    lines = [_title(comparison), "", f"| {' | '.join(_header())} |", "|---" * len(_header()) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row))} |" for row in comparison.rows)])


def _csv(comparison: Comparison) -> str:
    buffer = io.StringIO()
    rows = [row.to_json() for row in comparison.rows]
    writer = csv.DictWriter(buffer, ["dataset", "split", "protocol", *rows[0]], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        lists = {name: " ".join(map(str, row[name])) for name in ("seeds", "evaluations")}
        place = {
            "dataset": comparison.dataset,
            "split": comparison.split,
            "protocol": comparison.protocol["name"],
        }
        texts = {**place, **row, **lists}
        writer.writerow(
            {name: cell(value) if isinstance(value, str) else value for name, value in texts.items()}
        )
    return buffer.getvalue().rstrip("\n")
