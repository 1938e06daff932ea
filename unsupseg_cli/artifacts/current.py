"""What names the last artifacts, by kind and split: those that a call takes which names none."""

from __future__ import annotations

import json
from collections.abc import Sequence

from unsupseg_cli.artifacts.artifact import Artifact

CURRENT = "current.json"


def with_current(
    current: dict[str, dict[str, str]], artifacts: Sequence[Artifact]
) -> dict[str, dict[str, str]]:
    """Return what names the last artifacts once these are the last ones of their kinds and splits."""
    changed = {kind: dict(names) for kind, names in current.items()}
    for artifact in artifacts:
        splits = changed.setdefault(artifact.manifest.kind, {})
        splits["*last*"] = artifact.id
        if artifact.manifest.data:
            splits[artifact.manifest.data.split] = artifact.id
    return changed


def as_current(text: str) -> dict[str, dict[str, str]]:
    """Return what names the last artifacts; raises ValueError where the text tells nothing of the kind."""
    try:
        current = {kind: dict(names) for kind, names in json.loads(text).items()}
    except (TypeError, AttributeError, RecursionError):
        raise ValueError("expected names by kind") from None
    return current
