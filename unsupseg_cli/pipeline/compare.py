"""compare: evaluations side by side, where they may be."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from unsupseg_cli.artifacts.manifest import Manifest
from unsupseg_cli.artifacts.workspace import Artifact, Workspace
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.pipeline.lineage import ancestors, flat, lineage, settings_of, without

SCORES = ("accuracy", "miou", "miou_gt", "miou_all")


@dataclass
class Row:
    """One setting: scores in [0, 1] by name, one value per seed, in the order of ``seeds``.

    ``setting`` names the options that set it off from rows which look the same; ``linear`` is the mIoU of the
    supervised linear probe.
    """

    method: str
    classes: int
    backbone: str
    crf: bool
    used_labels: bool
    options: dict[str, Any]
    setting: str = ""
    ids: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SCORES})
    linear: list[float] = field(default_factory=list)

    def mean(self, name: str) -> float:
        """Return the mean of a score over the seeds."""
        return statistics.mean(self.scores[name])

    def deviation(self, name: str) -> float | None:
        """Return the sample standard deviation of a score over the seeds, None of a single one."""
        values = self.scores[name]
        return statistics.stdev(values) if len(values) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        record: dict[str, Any] = {
            "method": self.method,
            "classes": self.classes,
            "backbone": self.backbone,
            "crf": self.crf,
            "setting": self.setting,
            "used_labels": self.used_labels,
            "seeds": self.seeds,
            "evaluations": self.ids,
        }
        for name in SCORES:
            record[name], record[f"{name}_deviation"] = self.mean(name), self.deviation(name)
        record["linear_probe_miou"] = statistics.mean(self.linear) if self.linear else None
        return record


@dataclass(frozen=True)
class Comparison:
    """Rows that may stand in one table: one data set, split and protocol."""

    dataset: str
    split: str
    images: int
    protocol: dict[str, Any]
    rows: list[Row]


def beside_the_last(workspace: Workspace, reporter: Reporter) -> list[Artifact]:
    """Return the last evaluation and all that may stand in one table with it; say how many may not.

    Raises:
        UsageError: there is no evaluation.
    """
    last = workspace.find_current("evaluation")
    if last is None:
        raise UsageError(
            f"There is no evaluation in the workspace '{workspace}' yet; run `unsupseg eval` first."
        )
    others = [other for other in workspace.artifacts("evaluation") if other.id != last.id]
    beside = [other for other in others if not _differences(last.manifest, other.manifest)]
    if left_out := len(others) - len(beside):
        reporter.info(
            f"evaluations left out: {left_out}, of other images, classes or rules than '{last.id}', the last one"
        )
    return [last, *beside]


def compare(evaluations: Sequence[Artifact]) -> Comparison:
    """Put evaluations into one table; those that differ in nothing but seeds share a row.

    Raises:
        UsageError: they are of other images, classes, protocols or matchings; the message says which and how.
    """
    if not evaluations:
        raise UsageError("Name the evaluations to compare; `unsupseg list evaluation` shows them.")
    for evaluation in evaluations:
        if evaluation.manifest.kind != "evaluation":
            raise UsageError(
                f"'{evaluation.id}' is of kind '{evaluation.manifest.kind}'; compare takes evaluations."
            )
    first = evaluations[0]
    for other in evaluations[1:]:
        if differences := _differences(first.manifest, other.manifest):
            raise UsageError(
                f"'{first.id}' and '{other.id}' must not stand in one table: they differ in "
                f"{'; '.join(differences)}. Score them again in one way, or make two tables."
            )
    rows: dict[str, Row] = {}
    distinct = {evaluation.manifest.key: evaluation for evaluation in evaluations}.values()
    for evaluation in sorted(
        distinct, key=lambda evaluation: _seed(evaluation.manifest, _finder(evaluation))
    ):
        find = _finder(evaluation)
        setting = lineage(evaluation.manifest, find, ignore=("seed",))
        row = rows.setdefault(setting, _row(evaluation.manifest, find))
        row.ids.append(evaluation.id)
        row.seeds.append(_seed(evaluation.manifest, find))
        for name in SCORES:
            row.scores[name].append(evaluation.manifest.summary[name])
        if "linear_probe" in evaluation.manifest.summary:
            row.linear.append(evaluation.manifest.summary["linear_probe"]["miou"])
    _name_settings(list(rows.values()))
    data = first.manifest.data
    return Comparison(
        dataset=data.dataset if data else "images",
        split=data.split if data else "all",
        images=int(first.manifest.summary["images"]),
        protocol=first.manifest.summary["protocol"],
        rows=list(rows.values()),
    )


def _differences(first: Manifest, second: Manifest) -> list[str]:
    """Return what keeps two evaluations out of one table."""
    parts: list[tuple[str, object, object]] = []
    if first.data and second.data:
        parts += [
            ("data set", first.data.dataset, second.data.dataset),
            ("split", first.data.split, second.data.split),
        ]
        if first.data.fingerprint != second.data.fingerprint and (first.data.split == second.data.split):
            parts.append(("images", first.data.fingerprint[:8], second.data.fingerprint[:8]))
    first_protocol, second_protocol = first.summary["protocol"], second.summary["protocol"]
    names = [name for name in first_protocol if name != "source"]
    parts += [(f"protocol ({name})", first_protocol[name], second_protocol.get(name)) for name in names]
    parts.append(("labelled images", first.summary["images"], second.summary["images"]))
    parts.append(("classes", len(first.summary["class_names"]), len(second.summary["class_names"])))
    for what, name in (("class file", "space_digest"), ("label files", "labels")):
        digest, other = (str(manifest.config.get(name, ""))[:8] for manifest in (first, second))
        if digest and other:  # older evaluations do not tell
            parts.append((what, digest, other))
    assignments = [
        next((item.id for item in manifest.inputs if item.role == "assignment"), "none")
        for manifest in (first, second)
    ]
    parts.append(("assignment", assignments[0], assignments[1]))
    return [f"{name} ({a} and {b})" for name, a, b in parts if a != b]


def _finder(evaluation: Artifact) -> Callable[[str, str], Manifest | None]:
    """Return the lookup of inputs in the workspace that an evaluation lies in."""
    workspace = evaluation.home

    def find(kind: str, key: str) -> Manifest | None:
        try:
            artifact = workspace.find_key(kind, key)
        except UnsupsegError:
            return None  # damaged: the setting is then known by the input's key
        return artifact.manifest if artifact else None

    return find


_OTHER_ROLES = ("assignment",)  # whose numbers a setting reads, but that is not what was scored


def _row(manifest: Manifest, find: Callable[[str, str], Manifest | None]) -> Row:
    """Return the row of an evaluation, still without scores."""
    chain = ancestors(manifest, find, without=_OTHER_ROLES)
    models = [ancestor for ancestor in chain if ancestor.kind == "model"]
    methods = list(dict.fromkeys(str(ancestor.config["method"]) for ancestor in reversed(models)))
    backbones = [
        str(ancestor.config["backbone"]) for ancestor in chain if ancestor.stage in ("extract", "export")
    ]
    refined = any(ancestor.kind == "predictions" and ancestor.stage == "refine" for ancestor in chain)
    return Row(
        method=" + ".join(methods) or "?",
        classes=int(manifest.summary["clusters"]),
        backbone=backbones[0] if backbones else "?",
        crf=bool(manifest.summary.get("crf")) or refined,
        used_labels=manifest.used_labels,
        options={
            f"{'train' if ancestor.kind == 'model' else ancestor.stage}.{name}": value
            for ancestor in chain
            for name, value in flat(without(settings_of(ancestor), ("seed", "entries"))).items()
        },
    )


def _name_settings(rows: Sequence[Row]) -> None:
    """Tell rows apart that look the same: their ``setting`` names the options that they differ in."""
    for row in rows:
        alike = [other for other in rows if _columns(other) == _columns(row)]
        names = {name for other in alike for name in other.options.keys() | row.options.keys()}
        differing = [
            name
            for name in sorted(names)
            if any(other.options.get(name) != row.options.get(name) for other in alike)
        ]
        row.setting = ", ".join(f"{name} = {row.options.get(name, 'none')}" for name in differing)


def _columns(row: Row) -> tuple[object, ...]:
    """Return what the table shows of a row besides its scores."""
    return row.method, row.classes, row.backbone, row.crf


def _seed(manifest: Manifest, find: Callable[[str, str], Manifest | None]) -> int:
    """Return the seed of the model, or of the evaluation where the model is gone."""
    models = [
        ancestor for ancestor in ancestors(manifest, find, without=_OTHER_ROLES) if ancestor.kind == "model"
    ]
    return int((models[0] if models else manifest).config.get("seed", 0))
