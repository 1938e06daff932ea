"""tune: the candidate whose borders lie where colours change, and that others who look in another way agree with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.images import images_behind
from unsupseg_cli.contents.tuning import Tried, write_tuning
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item, spread
from unsupseg_cli.data.placement import LEAST_SHARE, share_of_place
from unsupseg_cli.inference.small_maps import SIDE, small_maps
from unsupseg_cli.metrics.label_free import agreement, border_contrast, confirmed_information, told_by_place
from unsupseg_cli.models.device import resolve_device
from unsupseg_cli.pipeline.candidates import Candidate
from unsupseg_cli.pipeline.run import run

VERSION = 1
"""Of what a tuning holds: another one makes it again."""


@dataclass(frozen=True)
class Made:
    """A candidate with its model, and what its model looks at images by: the digest of its features."""

    candidate: Candidate
    model: Artifact
    look: str


def tune(candidates: Sequence[Candidate], judged: int, context: Context, device: str = "auto") -> Artifact:
    """Make the model of every candidate, compare what they segment, and return the `tuning` artifact.

    What is there is reused, so that a stopped call goes on. A candidate that fails is told and left out. The model of
    the best one is then the one that commands take.

    Args:
        candidates: at least two.
        judged: images that are segmented, evenly chosen.
        context: of the call; with ``force`` the comparison is made again, and the models are taken as they are.
        device: of the segmenting.

    Raises:
        UsageError: they are of different images.
        UnsupsegError: fewer than two candidates could be made.
    """
    forced, context = context.force, replace(context, force=False)  # candidates share what they are made of
    made = _make(candidates, context)
    _require_one_collection(made)
    artifact, reused = context.workspace.produce(
        _identity(made, judged),
        lambda draft: _compare(draft, made, judged, context, device),
        force=forced,
        tell=context.reporter.info,
    )
    context.say(artifact, reused)
    best = made[artifact.manifest.summary["best"]]
    run(best.candidate.steps, replace(context, reporter=Silent()))
    return artifact


def _make(candidates: Sequence[Candidate], context: Context) -> list[Made]:
    """Make the models; two settings that mean the same are told, and one of them is kept."""
    made: dict[str, Made] = {}
    for number, candidate in enumerate(candidates, 1):
        context.reporter.info(f"candidate {number} of {len(candidates)}: {candidate.name}")
        try:
            artifacts = run(candidate.steps, context)
        except UnsupsegError as error:
            context.reporter.warn(f"left out: {candidate.name}: {error}")
            continue
        model = artifacts[candidate.model.id]
        if model.manifest.key in made:
            same = made[model.manifest.key].candidate.name
            context.reporter.info(f"left out: {candidate.name}: it is the model of '{same}'")
            continue
        features = model.input("features")
        made[model.manifest.key] = Made(
            candidate, model, features.digest if features else model.manifest.digest
        )
    if len(made) < 2:
        raise UnsupsegError(
            f"{len(made)} of {len(candidates)} candidates came out, and a choice needs two that differ: see what "
            "is told of the others above, or try other values."
        )
    return list(made.values())


def _require_one_collection(made: Sequence[Made]) -> None:
    first = made[0].model.manifest.data
    for other in made[1:]:
        data = other.model.manifest.data
        if first is None or data is None or data.fingerprint != first.fingerprint:
            raise UsageError(
                f"'{made[0].candidate.name}' and '{other.candidate.name}' were made from different images, and only "
                "segmentations of the same ones can be compared: leave what names images out of --vary."
            )


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
    confirmed = confirmed_information(maps)
    tried = _figures(made, maps, confirmed, np.stack([_small(item) for item in shown]))
    return write_tuning(draft.folder, tried, confirmed, maps, shown, _has_place(collection, context))


def _figures(
    made: Sequence[Made], maps: NDArray[np.int16], confirmed: NDArray[np.float64], images: NDArray[np.uint8]
) -> list[Tried]:
    """Return the figures of each candidate's maps (n, images, S, S)."""
    agreed = agreement(confirmed, [one.look for one in made]).tolist()
    return [
        Tried(one.candidate.name, one.model, border_contrast(own, images), share, told_by_place(own))
        for one, own, share in zip(made, maps, agreed, strict=True)
    ]


def _has_place(items: Sequence[Item], context: Context) -> bool:
    """Tell whether place matters in the images, as `extract --debias auto` looks at it."""
    share = share_of_place(items, context.reporter)
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
