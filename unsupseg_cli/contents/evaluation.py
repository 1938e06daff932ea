"""What an `evaluation` artifact holds: scores, the assignment of clusters to classes, tables and pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.artifacts.damage import read_json
from unsupseg_cli.artifacts.files import write_json
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID, as_ranges
from unsupseg_cli.core.names import cell
from unsupseg_cli.data.labels import LabelSpace
from unsupseg_cli.metrics.scores import Scores
from unsupseg_cli.report.overlay import colorize, error_map
from unsupseg_cli.report.palette import UNMATCHED_COLOR
from unsupseg_cli.report.plots import confusion_figure, iou_figure, save
from unsupseg_cli.report.sheet import Sample, sheet

SCORES, ASSIGNMENT, NAMING = "scores.json", "assignment.json", "naming.json"
CLUSTER_IDS, CLUSTER_OUTPUTS = "cluster_ids", "cluster_outputs"
SAMPLES, _KEYS, _CLASSES = "samples", "keys.jsonl", "classes.jsonl"
_SIDE = 480  # pixels of the longer side of a sample's pictures


def read_assignment(
    evaluation: Artifact, ids: Sequence[int], outputs: Sequence[Sequence[int]], classes: int
) -> NDArray[np.int64]:
    """Return the class of each cluster, (clusters,), for clusters of some ids that are made of outputs of a model.

    Raises:
        UsageError: the evaluation had clusters of other ids or of other outputs, or classes that there are none of
            here.
    """
    value = read_json(evaluation.path / ASSIGNMENT)
    if len(value) != len(ids):
        raise UsageError(
            f"The evaluation '{evaluation.id}' matches {len(value)} clusters, but there are {len(ids)} here."
        )
    if (matched := cluster_ids(evaluation.manifest.summary)) != list(ids):
        raise UsageError(
            f"The evaluation '{evaluation.id}' matches the clusters {as_ranges(matched)}, but here they are "
            f"{as_ranges(ids)}: other classes were merged."
        )
    _require_same_outputs(evaluation, ids, outputs)
    if max(value, default=-1) >= classes:
        raise UsageError(
            f"The evaluation '{evaluation.id}' matches class {max(value)}, but there are {classes} classes here."
        )
    return np.array(value, np.int64)


def _require_same_outputs(evaluation: Artifact, ids: Sequence[int], outputs: Sequence[Sequence[int]]) -> None:
    """Raise UsageError where a cluster of the same id is another one, because other classes were merged into it."""
    before = evaluation.manifest.summary.get(CLUSTER_OUTPUTS)
    if before is None:  # without merges, or of an earlier version
        return
    for number, was, now in zip(ids, before, outputs, strict=True):
        if now and list(now) != was:
            raise UsageError(
                f"The evaluation '{evaluation.id}' matches a class {number} that is made of the model's outputs "
                f"{as_ranges(was)}, but here it is made of {as_ranges(now)}: other classes were merged."
            )


def cluster_ids(summary: Mapping[str, Any]) -> list[int]:
    """Return the ids of the clusters that an evaluation counted, in order: without merges those from 0 on."""
    ids: list[int] = summary.get(CLUSTER_IDS, list(range(summary["clusters"])))
    return ids


def write_tables(
    folder: Path,
    matrix: Any,
    assignment: NDArray[np.int64],
    scores: Scores,
    space: LabelSpace,
    ids: Sequence[int],
) -> None:
    """Write the assignment, the confusion matrix (clusters, classes) with the clusters' ids, and pictures of both."""
    write_json(folder / ASSIGNMENT, [int(value) for value in assignment])
    with (folder / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["cluster", "matched to", *map(cell, space.names)])
        for cluster, target, row in zip(ids, assignment.tolist(), np.asarray(matrix).tolist(), strict=True):
            writer.writerow([cluster, cell(space.names[target]) if target >= 0 else "", *row])
    names, colors = list(space.names), np.array(space.colors, np.uint8)
    save(confusion_figure(scores.confusion, names), folder / "confusion.png")
    save(iou_figure(scores.iou, names, mean=scores.miou, colors=colors), folder / "iou.png")


def write_sheet(folder: Path, samples: Sequence[Sample], space: LabelSpace) -> None:
    """Write the sheet: image, overlay, prediction in the classes' colours, truth and errors.

    The pictures of each sample are also written one by one, so that a report need not open label files again.
    """
    if not samples:
        return
    colors = np.array(space.colors, np.uint8)
    save(sheet(samples, colors, list(space.names)), folder / "sheet.png")
    (folder / SAMPLES).mkdir(exist_ok=True)
    for number, sample in enumerate(samples):
        prediction = colorize(sample.prediction, colors, void_color=UNMATCHED_COLOR)
        _save_small(Image.fromarray(sample.image), folder / SAMPLES / f"{number:03d}-image.jpg")
        _save_small(Image.fromarray(prediction), folder / SAMPLES / f"{number:03d}-prediction.png")
        if sample.truth is not None:
            truth, errors = (
                colorize(sample.truth, colors),
                error_map(sample.prediction, sample.truth, sample.image),
            )
            _save_small(Image.fromarray(truth), folder / SAMPLES / f"{number:03d}-truth.png")
            _save_small(Image.fromarray(errors), folder / SAMPLES / f"{number:03d}-errors.jpg")
    _write_lines(folder / SAMPLES / _KEYS, [{"key": sample.name} for sample in samples])
    entries = zip(space.names, space.colors, strict=True)
    _write_lines(folder / SAMPLES / _CLASSES, [{"name": name, "color": list(rgb)} for name, rgb in entries])


def _write_lines(path: Path, records: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _save_small(picture: Image.Image, path: Path) -> None:
    """Write a picture at the size of a report; flat colours stay as they are."""
    flat = path.suffix == ".png"
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.NEAREST if flat else Image.Resampling.LANCZOS)
    (picture.quantize(256) if flat else picture).save(
        path, **({"optimize": True} if flat else {"quality": 85})
    )


def read_samples(evaluation: Artifact) -> list[tuple[str, dict[str, Path]]]:
    """Return the key of each image on the sheet, with its pictures by name: image, prediction, truth, errors.

    There are none in evaluations of earlier versions.
    """
    folder, samples = evaluation.path / SAMPLES, []
    for number, record in enumerate(_read_lines(folder / _KEYS)):
        paths = {path.stem.partition("-")[2]: path for path in sorted(folder.glob(f"{number:03d}-*"))}
        samples.append((str(record["key"]), paths))
    return samples


def read_legend(evaluation: Artifact) -> list[tuple[str, tuple[int, int, int]]]:
    """Return name and colour of each class in the samples' pictures; nothing where there are none."""
    records = _read_lines(evaluation.path / SAMPLES / _CLASSES)
    colors = [tuple(map(int, record["color"][:3])) for record in records]
    return [(str(record["name"]), (r, g, b)) for record, (r, g, b) in zip(records, colors, strict=True)]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def write_naming(folder: Path, names: Sequence[str | None]) -> None:
    """Write the name of each cluster's class, None for a cluster without one."""
    write_json(folder / NAMING, list(names))


def read_naming(evaluation: Artifact, clusters: int, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the class of each cluster, (clusters,), as an evaluation of masks named it; -1 of those without a name.

    Raises:
        UsageError: it names none, more clusters, or other classes.
    """
    path = evaluation.path / NAMING
    if not path.exists():
        raise UsageError(
            f"The evaluation '{evaluation.id}' names no classes: its masks have none, or took their names from another."
        )
    names = read_json(path)
    if len(names) > clusters:
        raise UsageError(
            f"The evaluation '{evaluation.id}' names {len(names)} clusters, but there are {clusters} here."
        )
    unknown = sorted({name for name in names if name is not None} - set(classes))
    if unknown:
        raise UsageError(
            f"The evaluation '{evaluation.id}' names classes that the labels here do not have: {', '.join(unknown)}; "
            f"they have {', '.join(classes)}."
        )
    places = {name: number for number, name in enumerate(classes)}
    known = [VOID if name is None else places[name] for name in names]
    return np.array(known + [VOID] * (clusters - len(known)), np.int64)
