"""report: everything about some artifacts, gathered from their manifests and files, as one page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.files import write_atomic
from unsupseg_cli.artifacts.outside import require_outside
from unsupseg_cli.artifacts.workspace import Artifact, Workspace
from unsupseg_cli.contents.class_sheet import class_sheet
from unsupseg_cli.contents.evaluation import read_legend, read_samples
from unsupseg_cli.contents.label_maps import read_entries
from unsupseg_cli.contents.model import read_model
from unsupseg_cli.contents.report_pictures import (
    Album,
    View,
    evaluation_slides,
    mask_slides,
    mask_view,
    prediction_slides,
    prediction_view,
)
from unsupseg_cli.core.errors import UnsupsegError, UsageError, reason_of
from unsupseg_cli.core.words import counted
from unsupseg_cli.pipeline.report_lineage import Subject, resources, steps, subject_of
from unsupseg_cli.pipeline.report_scores import add_mask_scores, add_scores
from unsupseg_cli.report.page import (
    GENERATOR,
    Page,
    Slides,
    render,
)

DEFAULTS = ("evaluation", "predictions", "model")
"""The kinds of which a report takes the last artifact, the first one that there is."""

_CLASSES_SIDE = 2600  # pixels of the longer side of a class sheet


def last_artifact(workspace: Workspace) -> Artifact:
    """Return what is reported where nothing is named; raises UsageError where there is nothing yet."""
    for kind in DEFAULTS:
        if (artifact := workspace.find_current(kind)) is not None:
            return artifact
    raise UsageError(
        f"The workspace '{workspace}' has no {', '.join(DEFAULTS[:-1])} or {DEFAULTS[-1]} yet: name an artifact "
        "(`unsupseg list` shows them), or make one, with `unsupseg demo` for instance."
    )


def write_report(
    artifacts: Artifact | Iterable[Artifact],
    out: Path | str,
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
        UsageError: there is no artifact, or the file is there and is no report.
        UnsupsegError: it cannot be written.
    """
    artifacts, out = [artifacts] if isinstance(artifacts, Artifact) else list(artifacts), Path(out)
    if not artifacts:
        raise UsageError("There is no artifact to report.")
    require_report(out)
    page = gather(artifacts, context, sheets)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, render(page))
    except OSError as error:
        raise UnsupsegError(
            f"The report cannot be written to '{out}' ({reason_of(error)}); name another file with --out."
        ) from None
    return page


def require_report(out: Path) -> None:
    """Raise UsageError where a file is there that is no report, and would be written over."""
    require_outside(out)
    if out.is_dir():
        raise UsageError(f"'{out}' is a folder; name a file with --out, such as '{out / 'report.html'}'.")
    if out.exists() and f'content="{GENERATOR}"'.encode() not in out.read_bytes()[:2000]:
        raise UsageError(f"'{out}' is there and is no report; name another file with --out.")


def gather(
    artifacts: Sequence[Artifact], context: Context, sheets: Mapping[str, Path] = MappingProxyType({})
) -> Page:
    """Return everything about some artifacts. What is missing is a note on the page, never an error."""
    distinct = {artifact.manifest.key: artifact for artifact in artifacts}
    subjects = [subject_of(artifact, context) for artifact in distinct.values()]
    album = Album()
    page = Page(title=", ".join(distinct_ids(subjects)), about=_about(subjects))
    evaluations = [subject for subject in subjects if subject.artifact.manifest.kind == "evaluation"]
    page.used_labels = [s.artifact.id for s in subjects if s.artifact.manifest.used_labels]
    _try(page, partial(add_scores, page, evaluations))
    of_masks = [subject for subject in subjects if subject.artifact.manifest.kind == "mask-evaluation"]
    _try(page, partial(add_mask_scores, page, of_masks))
    _try(page, partial(_add_slides, page, subjects, evaluations, album))
    _add_classes(page, subjects, album, sheets)
    page.steps = steps(subjects, album)
    page.resources = resources(subjects)
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
        images = f" of {data.dataset}/{data.split} ({counted(data.count, 'image')})" if data else ""
        parts.append(f"{manifest.kind}{images}, made {manifest.started or 'at an unknown time'}")
    return "; ".join(parts) + "."


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
        elif subject.artifact.manifest.kind in ("pseudolabels", "masks", "mask-evaluation"):
            masks = subject.last("pseudolabels", "masks")
            if masks is not None:
                _add_proposals(page, subject, masks, album)


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
    for name, source in subject.predictions().items():
        if _of_same_images(source, artifact):
            _try(page, partial(_append_view, views, name, source))
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


def _of_same_images(artifact: Artifact, other: Artifact) -> bool:
    first, second = artifact.manifest.data, other.manifest.data
    return first is not None and second is not None and first.fingerprint == second.fingerprint


def _add_classes(page: Page, subjects: Sequence[Subject], album: Album, sheets: Mapping[str, Path]) -> None:
    """Add the legend of scored classes, and the classes of each model: their colours and where they lie."""
    for subject in subjects:
        legend = read_legend(subject.artifact)
        if legend and all(entries != legend for _, entries in page.legends):
            page.legends.append((f"Classes of the labels of {subject.artifact.id}", legend))
    models = {model.manifest.key: (model, s) for s in subjects if (model := s.model) is not None}
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
    except UnsupsegError as error:
        page.notes.append(str(error))
    except (OSError, LookupError, ValueError, TypeError, RecursionError) as error:
        page.notes.append(
            f"A file is gone or damaged ({type(error).__name__}: {error}); see `unsupseg verify`."
        )
