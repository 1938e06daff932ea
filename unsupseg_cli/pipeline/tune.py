"""tune: the candidate whose borders lie where colours change, and that others who look in another way agree with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.identity import UNKNOWN, Identity
from unsupseg_cli.artifacts.manifest import DataSource
from unsupseg_cli.artifacts.sources import Sources
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.images import images_behind
from unsupseg_cli.contents.tuning import Tried, write_tuning
from unsupseg_cli.core.errors import NodeError, StorageError, UnsupsegError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item, spread
from unsupseg_cli.data.placement import LEAST_SHARE, place_in_colors
from unsupseg_cli.inference.small_maps import SIDE, small_maps
from unsupseg_cli.metrics.label_free import (
    agreement,
    alike,
    border_contrast,
    confirmed_information,
    told_by_place,
)
from unsupseg_cli.models.device import resolve_device
from unsupseg_cli.pipeline.candidates import Candidate, other_images, told_apart
from unsupseg_cli.pipeline.executor import Perform
from unsupseg_cli.pipeline.plan import Planned, plan_all
from unsupseg_cli.pipeline.recipe import Step
from unsupseg_cli.pipeline.run import run
from unsupseg_cli.pipeline.stage import perform, settle

VERSION = 2
"""Of what a tuning holds: another one makes it again."""


@dataclass(frozen=True)
class Made:
    """A candidate with its artifacts, the last of which is its model, and what that looks at images by.

    The ``look`` is the digest of its features.
    """

    candidate: Candidate
    artifacts: tuple[Artifact, ...]
    look: str

    @property
    def model(self) -> Artifact:
        """The model."""
        return self.artifacts[-1]


def tune(
    candidates: Sequence[Candidate],
    judged: int,
    context: Context,
    device: str = "auto",
    *,
    perform: Perform = perform,
) -> Artifact:
    """Make the model of every candidate, compare what they segment, and return the `tuning` artifact.

    What is there is reused, so that a stopped call goes on. What is wrong with the call is found before any work; a
    candidate whose making fails is told and left out. Only a choice changes what commands take: the artifacts of the
    best candidate then are what they take.

    Args:
        candidates: at least two.
        judged: images that are segmented, evenly chosen.
        context: of the call; with ``force`` the comparison is made again, and the models are taken as they are.
        device: of the segmenting.
        perform: does the work of a call, see `pipeline.executor`; default: in this process.

    Raises:
        UsageError: a candidate's options, images or weights do not fit, or the candidates are of different images.
        UnsupsegError: fewer than two candidates could be made.
        StorageError, NodeError: the workspace took no more, or a node of the cluster does not fit.
    """
    context.reporter.info(
        f"{len(candidates)} candidates, whose images, weights and options are looked at first"
    )
    resolve_device(device)
    look_over(candidates, context)
    _open_all(candidates, context)
    forced = context.force
    aside = replace(context, force=False, current=False)  # candidates share what they are made of
    made = _make(candidates, aside, perform)
    _require_one_collection([each.candidate for each in made], [each.model.manifest.data for each in made])
    artifact, reused = context.workspace.produce(
        _identity(made, judged),
        lambda draft: _compare(draft, made, judged, aside, device),
        force=forced,
        current=False,
        tell=context.reporter.info,
    )
    best = made[artifact.manifest.summary["best"]]
    context.workspace.take([*best.artifacts, artifact])
    return context.say(artifact, reused)


def look_over(candidates: Sequence[Candidate], context: Context) -> list[list[Planned]]:
    """Return what making each candidate would do; nothing is written.

    Raises:
        UsageError: the images are not found, a step does not fit them, or candidates are of different ones.
    """
    quiet = replace(context, force=False, reporter=Silent())
    planner, plans = plan_all(map(_steps_here, candidates), quiet), []
    for candidate in candidates:
        with _blamed_on(candidate):
            plans.append(next(planner))
    models = [plan[-1].artifact for plan in plans]
    _require_one_collection(candidates, [model.manifest.data if model else None for model in models])
    return plans


def _steps_here(candidate: Candidate) -> list[Step]:
    """Return the steps as this process can look at them: the device of an executor is none of this machine."""
    return [
        replace(step, config=step.config.model_copy(update={"device": "auto"}))
        if _is_elsewhere(step)
        else step
        for step in candidate.steps
    ]


@contextmanager
def _blamed_on(candidate: Candidate) -> Iterator[None]:
    """Let an error say of which candidate it is."""
    try:
        yield
    except UnsupsegError as error:
        raise type(error)(f"{candidate.name}: {error}") from error


def _is_elsewhere(step: Step) -> bool:
    return getattr(step.config, "executor", None) is not None


def _open_all(candidates: Sequence[Candidate], context: Context) -> None:
    """Open the images and the backbone of each candidate that begins in this process; a dry run opens none.

    Raises:
        UsageError: an option does not fit the backbone, or candidates are of different images.
        UnsupsegError: the weights cannot be read.
    """
    opened: dict[str, DataSource | None] = {}
    of_candidates = []
    for candidate in candidates:
        data = None
        for step in (step for step in candidate.steps if not step.inputs and not _is_elsewhere(step)):
            if (key := repr((step.command, step.config, step.options))) not in opened:
                quiet = replace(context, force=False, reporter=Silent(), sources=Sources())
                with _blamed_on(candidate):
                    call = settle(step.stage, step.config, quiet, step.options, {})
                    opened[key] = step.stage.identify(call).data
            data = opened[key]
        of_candidates.append(data)
    _require_one_collection(candidates, of_candidates)


def _make(candidates: Sequence[Candidate], context: Context, perform: Perform) -> list[Made]:
    """Make the models; two settings that mean the same are told, and one of them is kept."""
    made: dict[str, Made] = {}
    for number, candidate in enumerate(candidates, 1):
        context.reporter.info(f"candidate {number} of {len(candidates)}: {candidate.name}")
        try:
            artifacts = run(candidate.steps, context, perform=perform)
        except (NodeError, StorageError):  # of no candidate
            raise
        except UnsupsegError as error:
            context.reporter.warn(f"left out: {candidate.name}: {error}")
            continue
        model = artifacts[candidate.model.id]
        if model.manifest.key in made:
            same = made[model.manifest.key].candidate.name
            context.reporter.info(f"left out: {candidate.name}: it is the model of '{same}'")
            continue
        features = model.input("features")
        look = features.digest if features else model.manifest.digest
        made[model.manifest.key] = Made(candidate, tuple(artifacts.values()), look)
    if len(made) < 2:
        raise UnsupsegError(
            f"{len(made)} of {len(candidates)} candidates came out, and a choice needs two that differ: see what "
            "is told of the others above, or try other values."
        )
    return list(made.values())


def _require_one_collection(candidates: Sequence[Candidate], data: Sequence[DataSource | None]) -> None:
    """Raise UsageError where candidates are of different images, as far as these are known."""
    for other, source in zip(candidates[1:], data[1:], strict=True):
        if _images(source) != _images(data[0]):
            raise other_images(candidates[0], other)


def _images(data: DataSource | None) -> object:
    """Return what tells images apart: their content, or where they lie if it was not read."""
    if data is None or data.fingerprint != UNKNOWN:
        return data and data.fingerprint
    return data.root, data.split, data.count, data.image_suffix, data.pages, data.windows, data.step


def _identity(made: Sequence[Made], judged: int) -> Identity:
    data = made[0].model.manifest.data
    return Identity(
        kind="tuning",
        stage="tune",
        stage_version=VERSION,
        slug=f"{data.dataset if data else 'images'}-tuning{len(made)}",
        config={"judged": judged, "candidates": [one.candidate.name for one in made]},
        inputs=[one.model.as_input(f"candidate {number}") for number, one in enumerate(made, 1)],
        data=data,
        used_labels=any(one.model.manifest.used_labels for one in made),
    )


def _compare(
    draft: Draft, made: Sequence[Made], judged: int, context: Context, device: str
) -> dict[str, Any]:
    """Segment the images with every model, compare, and write tables and pictures; return the summary."""
    collection = images_behind(made[0].model.manifest, context).items
    items = spread(collection, judged)
    of_models = [_maps(draft, one, items, context, device) for one in made]
    shown = [item for item in items if all(item.key in each for each in of_models)]
    if len(shown) < len(items):
        draft.warnings.append(f"unreadable images left out of the comparison: {len(items) - len(shown)}")
    if not shown:
        raise UnsupsegError("None of the images could be read, so there is nothing to compare.")
    numbers = {int(one.model.manifest.summary["classes"]) for one in made}
    if len(numbers) > 1:
        draft.warnings.append(
            f"the candidates have {min(numbers)} to {max(numbers)} classes, and the criterion was only looked at among "
            "those of one number (--classes auto chooses it)"
        )
    maps = np.stack([np.stack([each[item.key] for item in shown]) for each in of_models])
    confirmed, groups = confirmed_information(maps), alike(maps)
    for group in sorted(set(groups)):
        names = [f"'{each.candidate.name}'" for each, own in zip(made, groups, strict=True) if own == group]
        if len(names) > 1:
            draft.warnings.append(
                f"{', '.join(names)} divide the images alike: they count as one in the agreement"
            )
    agreed = agreement(confirmed, [one.look for one in made], groups)
    if not agreed.any():
        draft.warnings.append("no candidate confirms anything of another: nothing speaks for the one chosen")
    pictures = np.stack([_small(item) for item in shown])
    tried = _figures(made, maps, agreed, pictures)
    return write_tuning(draft.folder, tried, confirmed, maps, shown, _has_place(collection, context))


def _figures(
    made: Sequence[Made],
    maps: NDArray[np.int16],
    agreed: NDArray[np.float64],
    images: NDArray[np.uint8],
) -> list[Tried]:
    """Return the figures of each candidate's maps (n, images, S, S)."""
    labels = told_apart([each.candidate for each in made])[1]
    return [
        Tried(each.candidate.name, label, each.model, border_contrast(own, images), share, told_by_place(own))
        for each, label, own, share in zip(made, labels, maps, agreed.tolist(), strict=True)
    ]


def _has_place(items: Sequence[Item], context: Context) -> bool:
    """Tell whether place matters in the images: whether it tells their colours."""
    share = place_in_colors(items, context.reporter)
    if share is None or share >= LEAST_SHARE:
        return True
    context.reporter.info(
        f"place tells {100 * max(share, 0):.0f} % of the colours' variance: classes that it tells are marked down"
    )
    return False


def _small(item: Item) -> NDArray[np.uint8]:
    """Return an image at the size of the maps, (SIDE, SIDE, 3)."""
    image = Image.fromarray(read_image(item.image, item.reading))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def _maps(
    draft: Draft, one: Made, items: Sequence[Item], context: Context, device: str
) -> Mapping[str, NDArray[np.int16]]:
    """Return the maps of a model; those of a call that was stopped are read again."""
    path = draft.folder / f".maps-{one.model.manifest.key[:16]}.npz"
    part = path.stem.removeprefix(".")
    if draft.is_done(part):
        with np.load(path, allow_pickle=False) as stored:
            return dict(zip(map(str, stored["keys"]), stored["maps"], strict=True))
    maps = small_maps(one.model, items, context, resolve_device(device))
    np.savez_compressed(path, keys=np.array(list(maps)), maps=np.stack(list(maps.values())))
    draft.finish(part, files=[path])
    return maps
