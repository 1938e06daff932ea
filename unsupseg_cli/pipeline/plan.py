"""The dry run of a recipe: what is reused, what would be made and why, how large, how long. Nothing is written.

The keys of artifacts that are not there yet are known from their inputs' keys and options, so that the whole recipe
can be planned. No weights are loaded: their digest is known for `tiny` and `backbone` artifacts, and for other
weights from earlier features of this workspace (of a file, while its size and time are the same).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.identity import UNKNOWN, Identity
from unsupseg_cli.artifacts.manifest import Manifest
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.data.layouts import LAYOUTS
from unsupseg_cli.methods.registry import usable_methods
from unsupseg_cli.pipeline.lineage import flat, lineage
from unsupseg_cli.pipeline.pace import extrapolate
from unsupseg_cli.pipeline.recipe import Step
from unsupseg_cli.pipeline.run import with_force
from unsupseg_cli.pipeline.stage import settle

_SHOWN = 4  # differences of a key that are told


@dataclass(frozen=True)
class Planned:
    """One stage of a dry run.

    ``artifact`` is there, or as it will be; it is not ``named`` where its key needs images or weights that were not
    read.
    ``bytes`` is about the size of its arrays and pictures, None where the images are not here; tables, sheets and
    models come on top, as do soft masks, whose number nobody knows before. ``seconds`` is what earlier runs of this
    workspace and device, or a probe, took, scaled to this one; None is unknown.
    """

    step: Step
    artifact: Artifact | None
    named: bool
    reused: bool
    why: str
    images: int
    bytes: int | None
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "stage": self.step.id,
            "command": self.step.command,
            "artifact": self.artifact.id if self.named and self.artifact else None,
            "reused": self.reused,
            "why": self.why,
            "images": self.images,
            "bytes": self.bytes,
            "seconds": self.seconds,
        }


def plan(
    steps: Sequence[Step],
    context: Context,
    *,
    first: str | None = None,
    probed: Sequence[Manifest] = (),
) -> list[Planned]:
    """Return what `run` would do with each step; the workspace is only read.

    Args:
        steps: what `recipe.resolve` returned.
        context: whose workspace is looked at; with ``force`` nothing is reused.
        first: this step and all later ones are made again.
        probed: what `pace.probe` returned, for times that no earlier run tells.

    Raises:
        UsageError: the images are not found, or a step does not fit them.
    """
    planner = _Planner(replace(context, read_only=True), probed)
    return [planner.plan(step, forced) for step, forced in with_force(steps, context.force, first)]


def plan_all(candidates: Iterable[Sequence[Step]], context: Context) -> Iterator[list[Planned]]:
    """Yield what `run` would do with each of several lists of steps; what they share is looked at once.

    Raises:
        UsageError: as of `plan`.
    """
    planner = _Planner(replace(context, read_only=True), ())
    known: dict[tuple[Any, ...], Planned] = {}
    for steps in candidates:
        planner.planned, planned = {}, []
        for step in steps:
            made_of = [(role, planner.planned[source].manifest.key) for role, source in step.inputs.items()]
            same = (step.command, repr(step.config), repr(step.options), *made_of)
            if same not in known:
                known[same] = planner.plan(step, forced=False)
            entry = replace(known[same], step=step)
            assert entry.artifact is not None
            planner.planned[step.id] = entry.artifact
            planned.append(entry)
        yield planned


def outline(steps: Sequence[Step]) -> list[Planned]:
    """Return what `run` would do without a look at the images: their numbers are those of the official data sets."""
    planned: dict[str, Planned] = {}
    for step in steps:
        layout = LAYOUTS.get(getattr(step.config, "dataset", None) or "")
        split = getattr(step.config, "split", None) or (
            "val" if step.command in ("predict", "eval") else None
        )
        images = layout.counts.get(split or layout.splits[0], 0) if layout else 0
        images = images or max((planned[source].images for source in step.inputs.values()), default=0)
        why = f"with {', '.join(step.inputs.values())}" if step.inputs else "the images are not here"
        planned[step.id] = Planned(step, None, False, False, why, images, None, None)
    return list(planned.values())


class _Planner:
    """Plans one step after the other, each on the promises of those before it."""

    def __init__(self, context: Context, probed: Sequence[Manifest]) -> None:
        self.workspace, self.probed = context.workspace.for_dry_run(), probed
        self.context = replace(context, workspace=self.workspace, by_recipe=True)
        self.past = [artifact.manifest for artifact in self.workspace.artifacts()]
        self.planned: dict[str, Artifact] = {}  # by the id of the step
        self.new: set[str] = set()  # keys of artifacts that are not there yet
        self.guessed: set[str] = set()  # keys that stand for what is not known yet
        self.length = {"seed"}.union(
            *(part.options.marked("length") for method in usable_methods() for part in method.parts)
        )

    def plan(self, step: Step, forced: bool) -> Planned:
        """Return what becomes of a step, and promise its artifact to later ones."""
        inputs = {role: self.planned[source] for role, source in step.inputs.items()}
        call = settle(step.stage, step.config, self.context, step.options, inputs)
        identity, foreseen = step.stage.identify(call), step.stage.foresee(call)
        existing = self.workspace.find_made(identity.kind, identity.key)
        why = self._why(identity, existing, forced)
        if existing is None:
            self.new.add(identity.key)
        unread = UNKNOWN in (
            identity.weights,
            identity.data.fingerprint if identity.data else "",
            identity.config.get("classes"),
            identity.config.get("debias"),
        )
        if unread or any(item.key in self.guessed for item in identity.inputs):
            self.guessed.add(identity.key)
        promise = self._promise(identity, foreseen.summary)
        artifact = existing or promise
        self.planned[step.id] = self.workspace.promised[identity.key] = artifact
        reused = existing is not None and not forced
        return Planned(
            step=step,
            artifact=artifact,
            named=identity.key not in self.guessed,
            reused=reused,
            why=why,
            images=identity.data.count if identity.data else 0,
            bytes=0 if reused else foreseen.bytes,
            seconds=0.0 if reused else self._seconds(promise.manifest),
        )

    def _promise(self, identity: Identity, summary: dict[str, Any]) -> Artifact:
        """Return the artifact of an identity, as far as it is known before it is made."""
        path = self.workspace.root / identity.kind / identity.id
        return Artifact(path, identity.manifest(summary=summary))

    # Why and how long --------------------------------------------------------------------------------------

    def _why(self, identity: Identity, existing: Artifact | None, forced: bool) -> str:
        """Say why an artifact is reused, goes on or is made: what it differs in from the most similar one."""
        if existing is not None:
            return (
                f"made again: --force or --from ('{existing.id}' is there)"
                if forced
                else f"'{existing.id}' is there"
            )
        if self.workspace.draft_folder(identity).exists():
            return "was begun and goes on where it stopped"
        older = [
            manifest
            for manifest in self.past
            if manifest.stage == identity.stage and manifest.kind == identity.kind
        ]
        if not older:
            return "there is none of this kind yet"
        compared = [(self._differences(identity, manifest), manifest) for manifest in older]
        fewest = min(len(differences) for differences, _ in compared)
        differences, nearest = [pair for pair in compared if len(pair[0]) == fewest][-1]
        more = f" and {fewest - _SHOWN} more" if fewest > _SHOWN else ""
        return f"differs from '{nearest.id}' in {'; '.join(differences[:_SHOWN])}{more}"

    def _differences(self, identity: Identity, old: Manifest) -> list[str]:
        """Return which parts of the key are others than those of an artifact."""
        differing = []
        if identity.stage_version != old.stage_version:
            differing.append(f"the version of the stage ({identity.stage_version}, was {old.stage_version})")
        if identity.data and old.data and identity.data.fingerprint != old.data.fingerprint:
            differing.append("the images")
        if identity.weights == UNKNOWN:
            differing.append("the weights, which were not used here yet")
        elif identity.weights and identity.weights != old.summary.get("weights_digest"):
            differing.append("the weights")
        inputs = {item.role: item for item in old.inputs}
        for item in identity.inputs:
            if item.role not in inputs or inputs[item.role].key != item.key:
                differing.append(f"its {item.role} ({'new' if item.key in self.new else item.id})")
        differing += [f"no {role} now" for role in inputs.keys() - {item.role for item in identity.inputs}]
        now, then = flat(identity.config), flat(old.config)
        for name in sorted(now.keys() | then.keys()):
            if now.get(name) != then.get(name):
                differing.append(f"{name} = {now.get(name, 'none')} (was {then.get(name, 'none')})")
        return differing or ["the labels"]

    def _seconds(self, manifest: Manifest) -> float | None:
        """Return how long a stage may take, from the last run with the same options on this device or a probe."""
        pace = self._pace(manifest)

        def comparable(earlier: Manifest) -> bool:
            if earlier.stage != manifest.stage or earlier.seconds <= 0:
                return False
            same_device = earlier.execution.get("device") == manifest.execution.get("device")
            return same_device and self._pace(earlier) == pace

        if match := next(filter(comparable, reversed(self.past)), None):
            return match.seconds * _work(manifest) / _work(match)
        points = [(_work(earlier), earlier.seconds) for earlier in filter(comparable, self.probed)]
        return extrapolate(points, _work(manifest)) if len(points) == 2 else None

    def _pace(self, manifest: Manifest) -> str:
        """Return what decides how long an item or a step takes."""
        planned = {artifact.manifest.key: artifact.manifest for artifact in self.planned.values()}
        earlier = {past.key: past for past in (*self.past, *self.probed)}
        return lineage(
            manifest, lambda _, key: planned.get(key) or earlier.get(key), ignore=self.length, images=False
        )


def _work(manifest: Manifest) -> float:
    """Return the amount of work that time grows with: what the stage said, else the number of images."""
    images = manifest.data.count if manifest.data else 1
    return float(manifest.execution.get("work", images))
