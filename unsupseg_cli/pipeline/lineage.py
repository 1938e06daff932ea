"""What an artifact came from, as one comparable text: its configuration and those of all its inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from unsupseg_cli.artifacts.manifest import Manifest

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


def lineage(manifest: Manifest, find: Find, *, ignore: Collection[str], images: bool = True) -> str:
    """Return what decides an artifact, back to its images, as canonical JSON.

    Args:
        manifest: of the artifact.
        find: looks up an input; one that is gone counts by its key.
        ignore: names of options that do not matter.
        images: whether it matters which images there were.
    """

    def describe(ancestor: Manifest) -> Any:
        inputs = []
        for item in ancestor.inputs:
            source = find(item.kind, item.key)
            inputs.append([item.role, describe(source) if source else item.key])
        description: dict[str, Any] = {
            "stage": ancestor.stage,
            "config": without(settings_of(ancestor), ignore),
            "inputs": inputs,
        }
        if images and ancestor.data:
            description["images"] = ancestor.data.fingerprint
        return description

    return json.dumps(describe(manifest), sort_keys=True)
