"""Which artifacts a call reads: the ones named, else the last ones that belong together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.identity import UNKNOWN
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.features import FeatureSet, features_behind
from unsupseg_cli.contents.model_file import take_model
from unsupseg_cli.core.errors import UsageError, did_you_mean
from unsupseg_cli.core.ports import Port, ports_to_fill
from unsupseg_cli.pipeline.table import makers

_NOUNS = {
    "pseudolabels": ("the pseudo-labels", "were"),
    "graph": ("the graph", "was"),
}
"""What is made from features and belongs to them."""


def take_inputs(ports: Sequence[Port], config: Any, context: Context) -> dict[str, Artifact]:
    """Return the artifacts that a call reads, by role.

    What is not named is the last one written or reused. Features, and what was made from features, belong together:
    the features of pseudo-labels are those that they were made from, and a graph is one of the same features.

    Raises:
        UsageError: an artifact is not there, is gone, or does not belong to the others; two are named of which one is
            read.
    """
    named = {port.role: getattr(config, port.role) for port in ports}
    named = {role: reference for role, reference in named.items() if reference is not None}
    ports = ports_to_fill(ports, named, lambda port: context.workspace.find_current(port.kind) is not None)
    taken = {
        port.role: take_artifact(port.kind, named[port.role], context) for port in ports if port.role in named
    }
    for port in ports:
        if port.role in taken:
            continue
        artifact = _default_input(port, taken, context)
        if artifact is not None:
            taken[port.role] = artifact
    if "features" in taken:
        _require_same_features(taken, {port.role for port in ports if port.views}, context)
        _require_same_images(taken)
    return taken


def require_inputs(ports: Sequence[Port], inputs: Mapping[str, object], stage: str) -> None:
    """Raise UsageError unless inputs are artifacts of the kinds that a stage reads in their roles."""
    if not isinstance(inputs, Mapping):
        raise UsageError(
            f"`{stage}` takes its inputs as artifacts by role, not as a {type(inputs).__name__}."
        )
    kinds: dict[str, set[str]] = {}
    for port in ports:
        kinds.setdefault(port.role, set()).add(port.kind)
    for role, artifact in inputs.items():
        if role not in kinds:
            raise UsageError(f"`{stage}` reads no input '{role}'{did_you_mean(role, kinds)}")
        if not isinstance(artifact, Artifact):
            raise UsageError(f"The input '{role}' is a {type(artifact).__name__}; give the artifact itself.")
        if artifact.manifest.kind not in kinds[role]:
            raise UsageError(
                f"'{artifact.id}' is of kind {artifact.manifest.kind}, and `{stage}` reads "
                f"{' or '.join(sorted(kinds[role]))} as '{role}'."
            )


def take_artifact(kind: str, reference: str | None, context: Context, *, quiet: bool = False) -> Artifact:
    """Return the artifact of a reference, by default the last one of its kind; a model may be a file of `export`.

    Raises:
        UsageError: there is none; the message names the command that makes one.
    """
    if reference is not None:
        return take_model(reference, context) if kind == "model" else context.workspace.get(reference, kind)
    artifact = context.workspace.find_current(kind)
    if artifact is None:
        commands = " or ".join(f"`unsupseg {name}`" for name in makers(kind))
        if damaged := context.workspace.unreadable(kind):
            raise UsageError(
                f"No {kind} in the workspace '{context.workspace}' can be read: '{_name(damaged[0])}' is damaged or of "
                f"a newer version (`unsupseg verify` says which); run {commands or 'what made it'} again with --force."
            )
        raise UsageError(
            f"No {kind} in the workspace '{context.workspace}' yet; run {commands or 'what makes it'} first, or "
            f"name one with --{kind}."
        )
    if not quiet:
        context.reporter.info(f"taking {kind} '{artifact.id}' (the last one)")
        for place in context.workspace.unreadable(kind):
            context.reporter.warn(
                f"{kind} '{_name(place)}' cannot be read and was passed over; `unsupseg verify` says why"
            )
    return artifact


def _name(place: Path | str) -> str:
    return str(place).rpartition("/")[2]


def require_method(port: Port, artifact: Artifact) -> None:
    """Raise UsageError unless an artifact is of the method, or of the layout, that a port reads."""
    method = artifact.manifest.config.get("method")
    if port.method and method != port.method:
        raise UsageError(
            f"'{artifact.id}' is of method '{method}', and only {port.role} of '{port.method}' are read here; leave "
            f"--{port.role} out."
        )
    layout = artifact.manifest.config.get("regions")
    if port.layout and layout != port.layout:
        raise UsageError(
            f"'{artifact.id}' was laid out by --regions {layout}, and {port.layout} is read here; leave --{port.role} "
            f"out, or run `unsupseg extract --regions {port.layout}`."
        )


def _default_input(port: Port, taken: Mapping[str, Artifact], context: Context) -> Artifact | None:
    """Return what is read in a role in which no artifact is named, if anything."""
    features = taken.get("features")
    if port.role == "features" and not port.optional:
        return _features_behind(taken, context) or take_artifact(port.kind, None, context)
    if port.optional:
        return _current_of_method(port, features, context) if port.method else None
    if features is not None and port.role == "regions":
        return _last_regions(port.layout, features, context)
    if features is None or port.role not in _NOUNS:
        return take_artifact(port.kind, None, context)
    artifact = _last_made_from(port.kind, features, context)
    if artifact is None:
        commands = " or ".join(f"`unsupseg {name} --features {features.id}`" for name in makers(port.kind))
        raise UsageError(
            f"No {port.kind} was made from the features '{features.id}' yet; run {commands or 'what makes it'} first."
        )
    context.reporter.info(f"taking {port.kind} '{artifact.id}' (the last one of these features)")
    return artifact


def _features_behind(taken: Mapping[str, Artifact], context: Context) -> Artifact | None:
    """Return the features that an artifact already taken was made from."""
    for role, artifact in taken.items():
        if role in _NOUNS and artifact.input("features") is not None:
            return features_behind(artifact, context)
    return None


def _current_of_method(port: Port, features: Artifact | None, context: Context) -> Artifact | None:
    """Return the last artifact of a kind if the method that the port reads made it, from these features."""
    artifact = context.workspace.find_current(port.kind)
    if artifact is None:
        return None
    fits = artifact.manifest.config.get("method") == port.method
    used = artifact.input("features")
    if not fits or (features is not None and (used is None or used.key != features.manifest.key)):
        return None
    context.reporter.info(f"taking {port.kind} '{artifact.id}' (the last one)")
    return artifact


def _last_made_from(kind: str, features: Artifact, context: Context) -> Artifact | None:
    """Return the current artifact of a kind if it was made from these features, else the newest that was."""
    for artifact in _current_and_older(kind, context):
        used = artifact.input("features")
        if used is not None and used.key == features.manifest.key:
            return artifact
    return None


def _last_regions(layout: str, features: Artifact, context: Context) -> Artifact:
    """Return the current regions if they are of the images of these features, and the layout, else the newest."""
    for artifact in _current_and_older("regions", context):
        fits = not layout or artifact.manifest.config.get("regions") == layout
        if fits and _same_images(artifact, features):
            context.reporter.info(f"taking regions '{artifact.id}' (the last ones of these images)")
            return artifact
    data = features.manifest.data
    where = f" (--dataset {data.dataset} --split {data.split})" if data else ""
    flag = f" {layout}" if layout else ""
    raise UsageError(
        f"There are no regions of the images of '{features.id}' yet; run `unsupseg extract --regions{flag}`{where} "
        "first."
    )


def _current_and_older(kind: str, context: Context) -> list[Artifact]:
    """Return the artifacts of a kind: the current one, then the others from the newest to the oldest."""
    current = context.workspace.find_current(kind)
    by_age = sorted(context.workspace.artifacts(kind), key=lambda artifact: artifact.manifest.started)
    return ([current] if current else []) + by_age[::-1]


def _same_images(first: Artifact, second: Artifact) -> bool:
    """Tell whether two artifacts were made from the same images; what a dry run does not know counts as the same."""
    prints = [
        artifact.manifest.data.fingerprint
        for artifact in (first, second)
        if artifact.manifest.data is not None
    ]
    return UNKNOWN in prints or len(set(prints)) < 2


def _same_views(first: Artifact, second: Artifact) -> bool:
    """Tell whether two features have the same views, row by row; what a dry run does not know counts as the same."""
    if not (first.is_made and second.is_made):
        return True
    return FeatureSet(first).views == FeatureSet(second).views


def _require_same_images(taken: Mapping[str, Artifact]) -> None:
    """Raise UsageError for regions or imported masks of other images than those of the features."""
    features = taken["features"]
    for artifact in (taken[role] for role in ("regions", "masks") if role in taken):
        if _same_images(features, artifact):
            continue
        data, others = features.manifest.data, artifact.manifest.data
        assert data is not None
        assert others is not None
        raise UsageError(
            f"The {artifact.manifest.kind} '{artifact.id}' are of other images ({others.dataset}, {others.split}: "
            f"{others.count}) than the features '{features.id}' ({data.dataset}, {data.split}: {data.count}); give "
            "what belongs together."
        )


def _require_same_features(
    taken: Mapping[str, Artifact], by_views: Collection[str], context: Context
) -> None:
    """Raise UsageError for an artifact that was made from other features than those that are read.

    In the roles ``by_views`` those features need only have the same views: the same boxes of the same images.
    """
    features = taken["features"]
    for role, artifact in taken.items():
        used = artifact.input("features") if role in _NOUNS else None
        if used is not None and used.key != features.manifest.key:
            if role in by_views and _same_views(features_behind(artifact, context), features):
                continue
            noun, verb = _NOUNS[role]
            raise UsageError(
                f"{noun.capitalize()} '{artifact.id}' {verb} made from the features '{used.id}' (key {used.key[:12]}), "
                f"not from '{features.id}' (key {features.manifest.key[:12]}); give what belongs together, or name "
                "only one."
            )
