"""compare: evaluations side by side, where they may be."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from unsupseg_cli.artifacts.manifest import Manifest
from unsupseg_cli.artifacts.workspace import Artifact, Workspace
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.pipeline.lineage import flat, lineage, without

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
        """Return the sample deviation over the seeds, None of a single one."""
        values = self.scores[name]
        return statistics.stdev(values) if len(values) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        found: dict[str, Any] = {
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
            found[name], found[f"{name}_deviation"] = self.mean(name), self.deviation(name)
        found["linear_probe_miou"] = statistics.mean(self.linear) if self.linear else None
        return found


@dataclass(frozen=True)
class Comparison:
    """Rows that may stand in one table: one data set, split and protocol."""

    dataset: str
    split: str
    images: int
    protocol: dict[str, Any]
    rows: list[Row]


def compare(evaluations: Sequence[Artifact]) -> Comparison:
    """Put evaluations into one table; those that differ in nothing but seeds share a row.

    Raises:
        UsageError: they are of other images, classes, protocols or matchings; the message says which and how.
    """
    if not evaluations:
        raise UsageError("Name the evaluations to compare; `unsupseg list evaluation` shows them.")
    for one in evaluations:
        if one.manifest.kind != "evaluation":
            raise UsageError(f"'{one.id}' is of kind '{one.manifest.kind}'; compare takes evaluations.")
    first = evaluations[0]
    for other in evaluations[1:]:
        if differing := _differing(first.manifest, other.manifest):
            raise UsageError(
                f"'{first.id}' and '{other.id}' must not stand in one table: they differ in "
                f"{'; '.join(differing)}. Score them again in one way, or make two tables."
            )
    rows: dict[str, Row] = {}
    different = {one.manifest.key: one for one in evaluations}.values()
    for one in sorted(different, key=lambda one: _seed(one.manifest, _finder(one))):
        find = _finder(one)
        setting = lineage(one.manifest, find, ignore=("seed",))
        row = rows.setdefault(setting, _row(one.manifest, find))
        row.ids.append(one.id)
        row.seeds.append(_seed(one.manifest, find))
        for name in SCORES:
            row.scores[name].append(one.manifest.summary[name])
        if "linear_probe" in one.manifest.summary:
            row.linear.append(one.manifest.summary["linear_probe"]["miou"])
    _set_off(list(rows.values()))
    data = first.manifest.data
    return Comparison(
        dataset=data.dataset if data else "images",
        split=data.split if data else "all",
        images=int(first.manifest.summary["images"]),
        protocol=first.manifest.summary["protocol"],
        rows=list(rows.values()),
    )


def _differing(one: Manifest, other: Manifest) -> list[str]:
    """Return what keeps two evaluations out of one table."""
    parts: list[tuple[str, object, object]] = []
    if one.data and other.data:
        parts += [
            ("data set", one.data.dataset, other.data.dataset),
            ("split", one.data.split, other.data.split),
        ]
        if one.data.fingerprint != other.data.fingerprint and (one.data.split == other.data.split):
            parts.append(("images", one.data.fingerprint[:8], other.data.fingerprint[:8]))
    ours, theirs = one.summary["protocol"], other.summary["protocol"]
    names = [name for name in ours if name != "source"]
    parts += [(f"protocol ({name})", ours[name], theirs.get(name)) for name in names]
    parts.append(("labelled images", one.summary["images"], other.summary["images"]))
    parts.append(("classes", len(one.summary["class_names"]), len(other.summary["class_names"])))
    given = [next((item.id for item in m.inputs if item.role == "assignment"), "none") for m in (one, other)]
    parts.append(("assignment", given[0], given[1]))
    return [f"{name} ({a} and {b})" for name, a, b in parts if a != b]


def _finder(evaluation: Artifact) -> Callable[[str, str], Manifest | None]:
    """Return the lookup of inputs in the workspace that an evaluation lies in."""
    workspace = Workspace(evaluation.path.resolve().parents[1])

    def find(kind: str, key: str) -> Manifest | None:
        try:
            found = workspace.find_key(kind, key)
        except UnsupsegError:
            return None  # damaged: the setting is then known by the input's key
        return found.manifest if found else None

    return find


def _ancestors(manifest: Manifest, find: Callable[[str, str], Manifest | None]) -> list[Manifest]:
    """Return an artifact and what it came from, nearest first."""
    found = [manifest]
    for item in manifest.inputs:
        source = find(item.kind, item.key) if item.role != "assignment" else None
        found += _ancestors(source, find) if source else []
    return found


def _row(manifest: Manifest, find: Callable[[str, str], Manifest | None]) -> Row:
    chain = _ancestors(manifest, find)
    models = [one for one in chain if one.kind == "model"]
    methods = list(dict.fromkeys(str(one.config["method"]) for one in reversed(models)))
    backbones = [str(one.config["backbone"]) for one in chain if one.stage in ("extract", "export")]
    refined = any(one.kind == "predictions" and one.stage == "refine" for one in chain)
    return Row(
        method=" + ".join(methods) or "?",
        classes=int(manifest.summary["clusters"]),
        backbone=backbones[0] if backbones else "?",
        crf=bool(manifest.summary.get("crf")) or refined,
        used_labels=manifest.used_labels,
        options={
            f"{'train' if one.kind == 'model' else one.stage}.{name}": value
            for one in chain
            for name, value in flat(without(one.config, ("seed", "entries"))).items()
        },
    )


def _set_off(rows: Sequence[Row]) -> None:
    """Tell rows apart that look the same, by the options they differ in."""
    for row in rows:
        same = [one for one in rows if _look(one) == _look(row)]
        names = {name for one in same for name in one.options.keys() | row.options.keys()}
        differing = [
            name
            for name in sorted(names)
            if any(one.options.get(name) != row.options.get(name) for one in same)
        ]
        row.setting = ", ".join(f"{name} = {row.options.get(name, 'none')}" for name in differing)


def _look(row: Row) -> tuple[object, ...]:
    return row.method, row.classes, row.backbone, row.crf


def _seed(manifest: Manifest, find: Callable[[str, str], Manifest | None]) -> int:
    """Return the seed of the model, or of the evaluation where the model is gone."""
    models = [one for one in _ancestors(manifest, find) if one.kind == "model"]
    return int((models[0] if models else manifest).config.get("seed", 0))
