"""report: everything about some artifacts, gathered from their manifests and files, as one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.files import write_atomic
from unsupseg_cli.artifacts.manifest import Input, Manifest
from unsupseg_cli.artifacts.workspace import Artifact, Workspace
from unsupseg_cli.contents.class_sheet import class_sheet
from unsupseg_cli.contents.evaluation import read_legend, read_samples
from unsupseg_cli.contents.model import read_model
from unsupseg_cli.contents.predictions import read_entries
from unsupseg_cli.contents.report_pictures import (
    Album,
    View,
    evaluation_slides,
    mask_slides,
    mask_view,
    prediction_slides,
    prediction_view,
)
from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import duration
from unsupseg_cli.methods.registry import method_of, not_installed
from unsupseg_cli.pipeline.compare import SCORES, compare
from unsupseg_cli.pipeline.lineage import flat, settings_of
from unsupseg_cli.pipeline.table import get_stage
from unsupseg_cli.report.page import (
    GENERATOR,
    Confusion,
    Curve,
    Page,
    Picture,
    Slides,
    Step,
    Table,
    curves,
    render,
)
from unsupseg_cli.training.checkpoint import METRICS
from unsupseg_cli.training.loop import EXPLAINED

DEFAULTS = ("evaluation", "predictions", "model")
"""The kinds of which a report takes the last artifact, the first one that there is."""

_TITLES = ("accuracy %", "mIoU %", "mIoU in truth %", "mIoU all %")
_SHEETS = ("sheet.png", "classes.png", "progress.png")
_SHEET_SIDE, _CLASSES_SIDE = 1100, 2600  # pixels of the longer side
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


def last_artifact(workspace: Workspace) -> Artifact:
    """Return what is reported where nothing is named; raises UsageError where there is nothing yet."""
    for kind in DEFAULTS:
        if (artifact := workspace.find_current(kind)) is not None:
            return artifact
    raise UsageError(
        f"The workspace '{workspace.root}' has no {', '.join(DEFAULTS[:-1])} or {DEFAULTS[-1]} yet: name an artifact "
        "(`unsupseg list` shows them), or make one, with `unsupseg demo` for instance."
    )


def write_report(
    artifacts: Sequence[Artifact],
    out: Path,
    context: Context,
    sheets: Mapping[str, Path] = MappingProxyType({}),
) -> Page:
    """Write the report of some artifacts as an HTML file; return what it holds.

    Args:
        artifacts: what is reported.
        out: the file.
        context: the workspace, and whom to tell.
        sheets: class sheets that are there already, by the id of their model.

    Raises:
        UsageError: the file is there and is no report.
        UnsupsegError: it cannot be written.
    """
    require_report(out)
    page = gather(artifacts, context, sheets)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, render(page))
    except OSError as error:
        raise UnsupsegError(
            f"The report cannot be written to '{out}' ({error.strerror}); name another file with --out."
        ) from None
    return page


def require_report(out: Path) -> None:
    """Raise UsageError where a file is there that is no report, and would be written over."""
    if out.is_dir():
        raise UsageError(f"'{out}' is a folder; name a file with --out, such as '{out / 'report.html'}'.")
    if out.exists() and f'content="{GENERATOR}"'.encode() not in out.read_bytes()[:2000]:
        raise UsageError(f"'{out}' is there and is no report; name another file with --out.")


def gather(
    artifacts: Sequence[Artifact], context: Context, sheets: Mapping[str, Path] = MappingProxyType({})
) -> Page:
    """Return everything about some artifacts. What is missing is a note on the page, never an error."""
    distinct = {artifact.manifest.key: artifact for artifact in artifacts}
    subjects = [_subject(artifact, context) for artifact in distinct.values()]
    album = Album()
    page = Page(title=", ".join(distinct_ids(subjects)), about=_about(subjects))
    evaluations = [subject for subject in subjects if subject.artifact.manifest.kind == "evaluation"]
    page.used_labels = [s.artifact.id for s in subjects if s.artifact.manifest.used_labels]
    _add_scores(page, evaluations)
    _add_mask_scores(page, [s for s in subjects if s.artifact.manifest.kind == "mask-evaluation"])
    _add_slides(page, subjects, evaluations, album)
    _add_classes(page, subjects, album, sheets)
    page.steps = _steps(subjects, album)
    page.resources = _resources(subjects)
    page.notes += album.left_out
    return page


def distinct_ids(subjects: Sequence[Subject]) -> list[str]:
    """Return the ids of what is reported."""
    return [subject.artifact.id for subject in subjects]


def _about(subjects: Sequence[Subject]) -> str:
    parts = []
    for subject in subjects:
        manifest = subject.artifact.manifest
        data = manifest.data
        images = f" of {data.dataset}/{data.split} ({data.count} images)" if data else ""
        parts.append(f"{manifest.kind}{images}, made {manifest.started or 'at an unknown time'}")
    return "; ".join(parts) + "."


# Lineage -------------------------------------------------------------------------------------------------


def _subject(artifact: Artifact, context: Context) -> Subject:
    workspace = Workspace(artifact.path.resolve().parents[1])
    home = replace(context, workspace=workspace)
    chain: dict[str, Artifact] = {}
    gone: dict[str, tuple[Input, str]] = {}

    def visit(one: Artifact) -> None:
        for item in one.manifest.inputs:
            if item.key in chain or item.key in gone:
                continue
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
        chain[one.manifest.key] = one

    visit(artifact)
    return Subject(artifact, home, list(chain.values()), list(gone.values()))


def _steps(subjects: Sequence[Subject], album: Album) -> list[Step]:
    """Return every artifact of the lineages once, oldest first; those that are gone come first."""
    gone = {
        item.key: Step(item.id, item.kind, gone=why) for subject in subjects for item, why in subject.gone
    }
    return [*gone.values(), *(_step(artifact, album) for artifact in _all(subjects))]


def _all(subjects: Sequence[Subject]) -> list[Artifact]:
    return list({a.manifest.key: a for subject in subjects for a in subject.chain}.values())


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
    remark = not_installed(manifest.config)
    return Step(
        id=manifest.id,
        kind=manifest.kind,
        stage=manifest.stage,
        facts=[*facts, *([("remark", remark)] if remark else [])],
        inputs=[(f"from {item.role}", item.id) for item in manifest.inputs],
        changed=changed,
        others=others,
        found=_plain(manifest.summary),
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
            changed.append((name, _text(value), _text(defaults[name])))
        else:
            others.append((name, _text(value)))
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


def _text(value: Any) -> str:
    """Return a value as a text of a bounded length; none is empty."""
    if value is None or value == "":
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text):,} characters)"


def _plain(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a summary holds beside tables and lists of images."""
    return [(name, _text(value)) for name, value in summary.items() if not isinstance(value, list | dict)]


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
    return curves([one for one in records if isinstance(one, dict)], _explained(artifact.manifest))


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
    found = [name for name in names if name in artifact.manifest.outputs or (artifact.path / name).exists()]
    pictures = [album.add(artifact.path / name, f"{name} of {artifact.id}", _SHEET_SIDE) for name in found]
    return [picture for picture in pictures if picture is not None]


def _resources(subjects: Sequence[Subject]) -> Table:
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


# Scores --------------------------------------------------------------------------------------------------


def _add_scores(page: Page, evaluations: Sequence[Subject]) -> None:
    """Add the tables of evaluations, side by side; a note says where they must not be compared."""
    if not evaluations:
        return
    artifacts = [subject.artifact for subject in evaluations]
    try:
        compare(artifacts)
    except UsageError as error:
        page.notes.append(f"These scores are not to be compared: {error}")
    columns = [_score_column(one) for one in evaluations]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    header = ("", *(f"{number}. {artifact.id}" for number, artifact in enumerate(artifacts, 1)))
    note = (
        "mIoU is the mean over the classes of truth or prediction, mIoU in truth over those of the truth, mIoU all "
        "over every class, absent ones as zero. Matching gives each cluster of the prediction its class."
    )
    page.scores.append(Table("Scores and how they were made", header, rows, note))
    if others := [row for number, one in enumerate(artifacts, 1) for row in _other_scores(number, one)]:
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
        "matching": str(protocol["matching"]),
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
    for cluster, target in enumerate(summary.get("assignment", [])):
        clusters.setdefault(names[target] if target >= 0 else "no class", []).append(str(cluster))
    matched = "; ".join(f"{name}: {', '.join(numbers)}" for name, numbers in clusters.items())
    return Confusion(
        f"Confusion of {artifact.id}", names, columns, shares, f"Clusters of each class: {matched}."
    )


def _add_mask_scores(page: Page, subjects: Sequence[Subject]) -> None:
    for subject in subjects:
        manifest = subject.artifact.manifest
        rows = _plain(manifest.summary) + [
            (f"{name}: {key}", _text(value))
            for name, table in manifest.summary.items()
            if isinstance(table, dict) and name != "skipped"
            for key, value in table.items()
        ]
        page.scores.append(Table(f"Objects of {manifest.id}", ("figure", "value"), rows))


def _percent(value: Any, absent: str = "-") -> str:
    return f"{100 * value:.2f}" if isinstance(value, int | float) else absent


# Pictures ------------------------------------------------------------------------------------------------


def _add_slides(
    page: Page, subjects: Sequence[Subject], evaluations: Sequence[Subject], album: Album
) -> None:
    """Add images in several views: of evaluations of the same images together, of other artifacts one by one."""
    groups: dict[str, list[Subject]] = {}
    for subject in evaluations:
        if not read_samples(subject.artifact):
            page.notes.append(
                f"'{subject.artifact.id}' has no single pictures: its sheet is shown with its lineage."
            )
            continue
        data = subject.artifact.manifest.data
        groups.setdefault(data.fingerprint if data else "", []).append(subject)
    for members in groups.values():
        _add_evaluated(page, members, album)
    for subject in subjects:
        if subject.artifact.manifest.kind == "predictions":
            _add_predicted(page, subject, album)
        elif subject.artifact.manifest.kind in ("pseudolabels", "masks"):
            _add_proposals(page, subject, subject.artifact, album)


def _add_evaluated(page: Page, members: Sequence[Subject], album: Album) -> None:
    first = members[0]
    data = first.artifact.manifest.data
    views: list[tuple[str, View]] = []
    whole = first.artifact.manifest.summary["protocol"]["geometry"] == "native"
    proposals = first.last("pseudolabels", "masks")
    if proposals is not None and whole and _of_same_images(proposals, first.artifact):
        _try(page, lambda: views.append(("proposal", mask_view(proposals, first.context))))
    scored = first.last("predictions")
    refined = scored is not None and scored.manifest.stage == "refine"
    if refined and len(members) == 1 and (before := first.last("predictions", stage="predict")) is not None:
        _try(page, lambda: views.append(("prediction", prediction_view(before, first.artifact))))
    name = "refined" if refined else "prediction"
    names = [name] if len(members) == 1 else [f"{n}. {s.artifact.id}" for n, s in enumerate(members, 1)]
    title = f"{data.dataset}/{data.split}, scored" if data else "Scored images"
    note = (
        "Predictions are in the colours of the classes that their clusters are matched with; what is matched with none "
        "is gray, void black."
    )
    if slides := evaluation_slides([member.artifact for member in members], views, names, album):
        page.slides.append((title, note, slides))
    if proposals is not None and not any(label == "proposal" for label, _ in views):
        _add_proposals(page, first, proposals, album)


def _add_predicted(page: Page, subject: Subject, album: Album) -> None:
    artifact, views = subject.artifact, list[tuple[str, View]]()
    proposals = subject.last("pseudolabels", "masks")
    same = proposals is not None and _of_same_images(proposals, artifact)
    if proposals is not None and same:
        _try(page, lambda: views.append(("proposal", mask_view(proposals, subject.context))))
    for one in subject.chain:
        if one.manifest.kind == "predictions" and _of_same_images(one, artifact):
            name = "refined" if one.manifest.stage == "refine" else "prediction"
            _try(page, partial(_append_view, views, name, one))
    data, slides = artifact.manifest.data, list[Slides]()
    _try(page, lambda: slides.extend(prediction_slides(artifact, views, subject.context, album)))
    if slides:
        page.slides.append(
            (f"{data.dataset}/{data.split}, predicted" if data else "Predicted images", "", slides)
        )
    if proposals is not None and not same:
        _add_proposals(page, subject, proposals, album)


def _append_view(views: list[tuple[str, View]], name: str, predictions: Artifact) -> None:
    views.append((name, prediction_view(predictions)))


def _add_proposals(page: Page, subject: Subject, masks: Artifact, album: Album) -> None:
    """Add images with the masks that the lineage holds, where they are of other images than what is reported."""
    slides: list[Slides] = []
    _try(page, lambda: slides.extend(mask_slides(masks, subject.context, album)))
    data = masks.manifest.data
    if slides:
        of = f" of {data.dataset}/{data.split}" if data else ""
        page.slides.append((f"Proposals{of}", f"Masks of {masks.id}.", slides))


def _of_same_images(one: Artifact, other: Artifact) -> bool:
    first, second = one.manifest.data, other.manifest.data
    return first is not None and second is not None and first.fingerprint == second.fingerprint


def _add_classes(page: Page, subjects: Sequence[Subject], album: Album, sheets: Mapping[str, Path]) -> None:
    """Add the legend of scored classes, and the classes of each model: their colours and where they lie."""
    for subject in subjects:
        legend = read_legend(subject.artifact)
        if legend and all(entries != legend for _, entries in page.legends):
            page.legends.append((f"Classes of the labels of {subject.artifact.id}", legend))
    models = {model.manifest.key: (model, s) for s in subjects if (model := s.last("model")) is not None}
    for model, subject in models.values():
        _try(page, partial(_add_model, page, model, subject, album, sheets.get(model.id)))


def _add_model(page: Page, model: Artifact, subject: Subject, album: Album, made: Path | None) -> None:
    file = read_model(model)[0]
    predictions = subject.last("predictions")
    entries = read_entries(predictions.path) if predictions is not None else file.classes
    page.legends.append((f"Classes of {model.id}", [(entry.name, entry.color) for entry in entries]))
    named = predictions.id if predictions is not None else None
    sheet = made or class_sheet(model, file, subject.context, named)
    if (picture := album.add(sheet, f"Where each class of {model.id} lies", _CLASSES_SIDE)) is not None:
        page.classes.append(picture)


def _try(page: Page, action: Callable[[], object]) -> None:
    """Do something that adds to a page; what is missing for it becomes a note."""
    try:
        action()
    except (UnsupsegError, OSError, KeyError) as error:
        page.notes.append(
            str(error) if isinstance(error, UnsupsegError) else f"A file is gone or damaged: {error}"
        )
