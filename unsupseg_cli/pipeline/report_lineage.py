"""What a report says of each artifact of a lineage: its settings, what it took, its training, its pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.manifest import Input, Manifest
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.evaluation import read_samples
from unsupseg_cli.contents.predictions import model_key
from unsupseg_cli.contents.report_pictures import (
    Album,
)
from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.progress import duration
from unsupseg_cli.methods.registry import method_of, not_installed
from unsupseg_cli.pipeline.lineage import flat, settings_of
from unsupseg_cli.pipeline.table import get_stage
from unsupseg_cli.report.page import (
    Curve,
    Picture,
    Step,
    Table,
    curves,
)
from unsupseg_cli.training.checkpoint import METRICS
from unsupseg_cli.training.loop import EXPLAINED

_SHEETS = ("sheet.png", "classes.png", "progress.png")
_SHEET_SIDE = 1100  # pixels of the longer side
_LONGEST = 300  # characters of a value


@dataclass(frozen=True)
class Subject:
    """An artifact that is reported, in the workspace that it lies in, with what it came from, oldest first."""

    artifact: Artifact
    context: Context
    chain: list[Artifact]
    gone: list[tuple[Input, str]]

    def last(self, *kinds: str, stage: str = "") -> Artifact | None:
        """Return the last artifact of some kinds in the lineage, made by a stage where one is named."""
        fitting = (a for a in reversed(self.chain) if a.manifest.kind in kinds)
        return next((a for a in fitting if stage in ("", a.manifest.stage)), None)

    @property
    def model(self) -> Artifact | None:
        """The model whose classes the artifact has: of predictions that `classes apply` made, the one it applied."""
        key = model_key(self.artifact, self.context)
        return next((a for a in self.chain if a.manifest.key == key), None) or self.last("model")

    def predictions(self) -> dict[str, Artifact]:
        """Return the predictions of the lineage by what they are, ``prediction`` or ``refined``; the last of each."""
        of_key = {artifact.manifest.key: artifact for artifact in self.chain}
        named: dict[str, Artifact] = {}
        for artifact in self.chain:
            if artifact.manifest.kind != "predictions":
                continue
            made: Artifact | None = artifact
            while made is not None and made.manifest.stage == "classes":
                before = made.input("predictions")
                made = of_key.get(before.key) if before else None
            named["refined" if made is not None and made.manifest.stage == "refine" else "prediction"] = (
                artifact
            )
        return named


def subject_of(artifact: Artifact, context: Context) -> Subject:
    """Return an artifact with its lineage, found in the workspace that it lies in."""
    workspace = artifact.home
    home = replace(context, workspace=workspace)
    chain: dict[str, Artifact] = {}
    gone: dict[str, tuple[Input, str]] = {}
    seen = {artifact.manifest.key}

    def visit(node: Artifact) -> None:
        for item in node.manifest.inputs:
            if item.key in seen:
                continue
            seen.add(item.key)
            try:
                source, why = workspace.find_key(item.kind, item.key), "is gone"
            except UnsupsegError as error:
                source, why = None, f"cannot be read ({error})"
            if source is None:
                gone[item.key] = (
                    item,
                    f"The {item.kind} '{item.id}' {why}: what it was made from is not known.",
                )
            else:
                visit(source)
        chain[node.manifest.key] = node

    visit(artifact)
    made = sorted(chain.values(), key=lambda one: (one is artifact, one.manifest.started))
    return Subject(artifact, home, made, list(gone.values()))


def steps(subjects: Sequence[Subject], album: Album) -> list[Step]:
    """Return every artifact of the lineages once, oldest first; those that are gone come first."""
    gone = {
        item.key: Step(item.id, item.kind, gone=why) for subject in subjects for item, why in subject.gone
    }
    return [*gone.values(), *(_step(artifact, album) for artifact in _all(subjects))]


def _all(subjects: Sequence[Subject]) -> list[Artifact]:
    ends = {subject.artifact.manifest.key for subject in subjects}
    every = {a.manifest.key: a for subject in subjects for a in subject.chain}
    return sorted(every.values(), key=lambda one: (one.manifest.key in ends, one.manifest.started))


def _step(artifact: Artifact, album: Album) -> Step:
    manifest = artifact.manifest
    changed, others = _settings(manifest)
    data, drawn = manifest.data, _curves(artifact, album)
    facts = [
        ("made", manifest.started or "at an unknown time"),
        ("images", f"{data.dataset}/{data.split}, {data.count}" if data else "none of its own"),
        ("time", _time(manifest.seconds)),
        ("peak memory", _bytes(manifest.peak_memory_bytes)),
        ("on disk", _bytes(_size(manifest))),
        ("deterministic", "yes" if manifest.deterministic else "no (device kernels)"),
    ]
    if edited := manifest.execution.get("edited"):
        facts.append(("classes changed of", str(edited)))
    remark = not_installed(manifest.config)
    return Step(
        id=manifest.id,
        kind=manifest.kind,
        stage=manifest.stage,
        facts=[*facts, *([("remark", remark)] if remark else [])],
        inputs=[(f"from {item.role}", item.id) for item in manifest.inputs],
        changed=changed,
        others=others,
        summary=_plain(manifest.summary),
        warnings=manifest.warnings,
        used_labels=manifest.used_labels,
        curves=drawn,
        pictures=_sheets(artifact, album, without_progress=bool(drawn)),
    )


def _settings(manifest: Manifest) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """Return the settings that differ from a known default, with it, and the others."""
    defaults = _defaults(manifest)
    changed, others = [], []
    for name, value in flat(settings_of(manifest)).items():
        if name in defaults and value != defaults[name] and value not in (None, "", [], {}):
            changed.append((name, text(value), text(defaults[name])))
        else:
            others.append((name, text(value)))
    return changed, others


def _defaults(manifest: Manifest) -> dict[str, Any]:
    """Return the default of each setting of a stage, and of the method's part that did the work, as far as known."""
    try:
        stage = get_stage(manifest.stage)
        defaults = _default_values(stage.config)
        if stage.uses:
            method = method_of(manifest.id, manifest.config)
            options = stage.part(method, manifest.config.get("part") or None).options
            defaults |= {f"options.{name}": value for name, value in _default_values(options).items()}
    except UnsupsegError:
        return {}
    return defaults


def _default_values(config: type[Config]) -> dict[str, Any]:
    fields = config.model_fields.items()
    values = {
        name: field.get_default(call_default_factory=True)
        for name, field in fields
        if not field.is_required()
    }
    plain: dict[str, Any] = flat(json.loads(json.dumps(values, default=str)))
    return plain


def text(value: Any) -> str:
    """Return a value as a text of a bounded length; none is empty."""
    if value is None or value == "":
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text):,} characters)"


def _plain(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a summary holds beside tables and lists of images."""
    return [(name, text(value)) for name, value in summary.items() if not isinstance(value, list | dict)]


def _curves(artifact: Artifact, album: Album) -> list[Curve]:
    """Return the course of a training, explained by its method."""
    path = artifact.path / METRICS
    if METRICS not in artifact.manifest.outputs and not path.exists():
        return []
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        album.left_out.append(f"course of the training of {artifact.id}: its file is gone or damaged")
        return []
    return curves([record for record in records if isinstance(record, dict)], _explained(artifact.manifest))


def _explained(manifest: Manifest) -> dict[str, str]:
    """Return what the figures of a training mean, as the loop and the method say."""
    explained = dict(EXPLAINED)
    try:
        if manifest.stage == "pretrain":
            from unsupseg_cli.pretraining.train import Pretrainer

            return explained | dict(Pretrainer.explained)
        trainer = method_of(manifest.id, manifest.config).require_trainer().load()
        return explained | dict(trainer.explained)
    except (UnsupsegError, KeyError):
        return explained


def _sheets(artifact: Artifact, album: Album, *, without_progress: bool) -> list[Picture]:
    """Return the pictures that an artifact holds, but for those that the page shows in another way."""
    names = [name for name in _SHEETS if not (without_progress and name == "progress.png")]
    if artifact.manifest.kind == "evaluation" and read_samples(artifact):
        names.remove("sheet.png")
    present = [name for name in names if name in artifact.manifest.outputs or (artifact.path / name).exists()]
    pictures = [album.add(artifact.path / name, f"{name} of {artifact.id}", _SHEET_SIDE) for name in present]
    return [picture for picture in pictures if picture is not None]


def resources(subjects: Sequence[Subject]) -> Table:
    """Return what each artifact of the lineages took, and all of them together."""
    artifacts = _all(subjects)
    rows = [
        (
            artifact.id,
            artifact.manifest.stage,
            _time(artifact.manifest.seconds),
            _bytes(artifact.manifest.peak_memory_bytes),
            _bytes(_size(artifact.manifest)),
            str(artifact.manifest.execution.get("device", "cpu")),
        )
        for artifact in artifacts
    ]
    manifests = [artifact.manifest for artifact in artifacts]
    peak = max(manifest.peak_memory_bytes for manifest in manifests)
    seconds, size = sum(m.seconds for m in manifests), sum(map(_size, manifests))
    rows.append(("all together", "", _time(seconds), _bytes(peak), _bytes(size), ""))
    machine = ", ".join(
        f"{name} {value}" for name, value in subjects[0].artifact.manifest.environment.items()
    )
    header = ("artifact", "stage", "time", "peak memory", "on disk", "device")
    missing = " Artifacts that are gone are not counted." if any(s.gone for s in subjects) else ""
    return Table(
        "What each stage took", header, rows, note=f"Made with {machine or 'unknown versions'}.{missing}"
    )


def _size(manifest: Manifest) -> int:
    return sum(output.bytes for output in manifest.outputs.values())


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _bytes(count: int) -> str:
    """Return a number of bytes in a unit that fits."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
