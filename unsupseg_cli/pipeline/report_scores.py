"""The scores of a report: evaluations side by side, by class, and their confusions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.evaluation import cluster_ids, read_legend
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.pipeline.compare import SCORES, compare
from unsupseg_cli.pipeline.report_lineage import Subject, text
from unsupseg_cli.report.page import (
    Confusion,
    Page,
    Table,
)

_TITLES = ("accuracy %", "mIoU %", "mIoU in truth %", "mIoU all %")


def add_scores(page: Page, evaluations: Sequence[Subject]) -> None:
    """Add the tables of evaluations, side by side; a note says where they must not be compared."""
    if not evaluations:
        return
    artifacts = [subject.artifact for subject in evaluations]
    try:
        if len(artifacts) > 1:
            compare(artifacts)
    except UsageError as error:
        page.notes.append(f"These scores are not to be compared: {error}")
    columns = [_score_column(subject) for subject in evaluations]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    header = ("", *(f"{number}. {artifact.id}" for number, artifact in enumerate(artifacts, 1)))
    note = (
        "mIoU is the mean over the classes of truth or prediction, mIoU in truth over those of the truth, mIoU all "
        "over every class, absent ones as zero. Matching gives each cluster of the prediction its class."
    )
    page.scores.append(Table("Scores and how they were made", header, rows, note))
    if others := [
        row for number, artifact in enumerate(artifacts, 1) for row in _other_scores(number, artifact)
    ]:
        page.scores.append(
            Table("Other scores of the same predictions", ("evaluation", "what", *_TITLES), others)
        )
    spaces: dict[tuple[str, ...], list[tuple[int, Artifact]]] = {}
    for number, artifact in enumerate(artifacts, 1):
        spaces.setdefault(tuple(artifact.manifest.summary["class_names"]), []).append((number, artifact))
    page.per_class += [_class_table(names, members) for names, members in spaces.items()]
    page.confusions += [_confusion(artifact) for artifact in artifacts]


def _score_column(subject: Subject) -> dict[str, str]:
    """Return the scores of an evaluation, and how they were made, by name."""
    manifest = subject.artifact.manifest
    summary, protocol = manifest.summary, manifest.summary["protocol"]
    refined = any(a.manifest.kind == "predictions" and a.manifest.stage == "refine" for a in subject.chain)
    data = manifest.data
    return {
        **{title: _percent(summary.get(name)) for name, title in zip(SCORES, _TITLES, strict=True)},
        "images": f"{data.dataset}/{data.split}, {summary['images']}" if data else str(summary["images"]),
        "clusters, classes": f"{summary['clusters']}, {len(summary['class_names'])}",
        "protocol": f"{protocol['name']}: {protocol['source']}",
        "geometry": f"{protocol['geometry']}, size {protocol['size'] or 'of the model'}, {protocol['filter']}",
        "mirrored too": "yes" if protocol["flip"] else "no",
        "matching": f"as in '{taken}'" if (taken := summary.get("matched_by")) else str(protocol["matching"]),
        "CRF": "yes" if summary.get("crf") or refined else "no",
        "labels": "used to make what is scored" if manifest.used_labels else "read for the scores only",
    }


def _other_scores(number: int, artifact: Artifact) -> Iterator[list[str]]:
    titles = {
        "linear_probe": "linear probe (fitted with labels)",
        "per_image": "matched image by image",
        "hungarian": "Hungarian matching by pixels",
    }
    for name, title in titles.items():
        if isinstance(scores := artifact.manifest.summary.get(name), dict):
            yield [f"{number}. {artifact.id}", title, *(_percent(scores.get(score)) for score in SCORES)]
    for kind, scores in artifact.manifest.summary.get("kinds", {}).items():
        title = f"classes of kind {kind} alone"
        yield [f"{number}. {artifact.id}", title, *(_percent(scores.get(score)) for score in SCORES)]


def _class_table(names: Sequence[str], members: Sequence[tuple[int, Artifact]]) -> Table:
    """Return IoU and share of each class, a column for each evaluation."""
    pixels = members[0][1].manifest.summary["pixels"]
    total = sum(pixels) or 1
    columns = [artifact.manifest.summary["iou"] for _, artifact in members]
    legend = read_legend(members[0][1])
    rows = [
        [name, f"{100 * pixels[index] / total:.2f}", *(_percent(iou[index], "absent") for iou in columns)]
        for index, name in enumerate(names)
    ]
    header = ("class", "of labelled pixels %", *(f"IoU of {number}, %" for number, _ in members))
    return Table(
        "By class", header, rows, colors=[rgb for _, rgb in legend] if len(legend) == len(names) else ()
    )


def _confusion(artifact: Artifact) -> Confusion:
    summary = artifact.manifest.summary
    names, counts = summary["class_names"], summary["confusion"]
    unmatched = any(row[len(names)] for row in counts if len(row) > len(names))
    columns = [*names, "unmatched"] if unmatched else list(names)
    shares = [[value / sum(row) for value in row[: len(columns)]] if sum(row) else None for row in counts]
    clusters: dict[str, list[str]] = {}
    for cluster, target in zip(cluster_ids(summary), summary.get("assignment", []), strict=False):
        clusters.setdefault(names[target] if target >= 0 else "no class", []).append(str(cluster))
    matched = "; ".join(f"{name}: {', '.join(numbers)}" for name, numbers in clusters.items())
    return Confusion(
        f"Confusion of {artifact.id}", names, columns, shares, f"Clusters of each class: {matched}."
    )


def add_mask_scores(page: Page, subjects: Sequence[Subject]) -> None:
    """Add the average precision of evaluations of masks, without classes and by class."""
    for subject in subjects:
        manifest, summary = subject.artifact.manifest, subject.artifact.manifest.summary
        counted = [
            (name, text(summary[name]))
            for name in ("images", "objects", "masks", "clusters")
            if name in summary
        ]
        rows = [*counted, ("AP50 %", _percent(summary.get("ap50"))), ("AP %", _percent(summary.get("ap")))]
        note = "Masks against true objects, by COCO's average precision, whatever their class."
        page.scores.append(Table(f"Objects of {manifest.id}", ("figure", "value"), rows, note))
        by_class = summary.get("by_class")
        if not isinstance(by_class, dict):
            continue
        precision = zip(summary["class_names"], by_class["ap50_of_class"], strict=False)
        rows = [(name, _percent(value, "absent")) for name, value in precision]
        rows.append(("mean", _percent(by_class["ap50"])))
        page.per_class.append(Table(f"Objects by class of {manifest.id}", ("class", "AP50 %"), rows))


def _percent(value: Any, absent: str = "-") -> str:
    return f"{100 * value:.2f}" if isinstance(value, int | float) else absent
