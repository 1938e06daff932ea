"""What an artifact came from, as one comparable text: its configuration and those of all its inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from unsupseg_cli.artifacts.manifest import Manifest
from unsupseg_cli.core.errors import UnsupsegError

Find = Callable[[str, str], Manifest | None]
"""The manifest of a kind and a full key, None where it is gone."""


def without(config: Any, names: Collection[str]) -> Any:
    """Return a configuration without the entries of these names, however deep they lie."""
    if not isinstance(config, dict):
        return config
    return {key: without(value, names) for key, value in config.items() if key not in names}


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested tables by dotted names."""
    flattened: dict[str, Any] = {}
    for key, value in config.items():
        flattened |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flattened


def settings_of(manifest: Manifest) -> dict[str, Any]:
    """Return the configuration of an artifact without what says nothing: the first version of a method, no part."""
    first = {"method_version": "1", "part": ""}
    return {
        key: value for key, value in manifest.config.items() if first.get(key) != value or key not in first
    }


def ancestors(
    manifest: Manifest, find: Find, *, without: Collection[str] = (), later: tuple[str, ...] = ()
) -> list[Manifest]:
    """Return an artifact and what it came from, nearest first, but for inputs of some roles.

    Raises:
        UnsupsegError: as `lineage`.
    """
    chain, below = [manifest], (*later, manifest.key)
    for item in manifest.inputs:
        source = find(item.kind, item.key) if item.role not in without else None
        if source is not None:
            chain += ancestors(_no_loop(source, below), find, without=without, later=below)
    return chain


def _no_loop(source: Manifest, later: Collection[str]) -> Manifest:
    if source.key in later:
        raise UnsupsegError(
            f"The manifest of '{source.id}' names itself among what it was made from: it was changed by hand; delete "
            "its folder and run the stage again."
        )
    return source


def lineage(manifest: Manifest, find: Find, *, ignore: Collection[str], images: bool = True) -> str:
    """Return what decides an artifact, back to its images, as canonical JSON.

    Args:
        manifest: of the artifact.
        find: looks up an input; one that is gone counts by its key.
        ignore: names of options that do not matter.
        images: whether it matters which images there were.

    Raises:
        UnsupsegError: an artifact is among what it came from, which no stage makes.
    """

    def describe(ancestor: Manifest, later: tuple[str, ...] = ()) -> Any:
        inputs = []
        for item in ancestor.inputs:
            source = find(item.kind, item.key)
            below = (*later, ancestor.key)
            inputs.append([item.role, describe(_no_loop(source, below), below) if source else item.key])
        description: dict[str, Any] = {
            "stage": ancestor.stage,
            "config": without(settings_of(ancestor), ignore),
            "inputs": inputs,
        }
        if images and ancestor.data:
            description["images"] = ancestor.data.fingerprint
        return description

    return json.dumps(describe(manifest), sort_keys=True)
