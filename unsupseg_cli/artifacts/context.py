"""What every stage gets: the workspace, somebody to tell, and what the workspace remembers beside its artifacts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unsupseg_cli.artifacts.cache import Cache
from unsupseg_cli.artifacts.files import write_json
from unsupseg_cli.artifacts.sources import Sources
from unsupseg_cli.artifacts.workspace import Artifact, Workspace
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.options import DEFAULT_WORKSPACE
from unsupseg_cli.core.progress import Reporter, Silent

ROOTS = "roots.json"
DIGESTS = "digests.json"
WEIGHTS = "weights.json"
ASKED = "asked.json"
PLACES = "places.json"
REMEMBERED = (ROOTS, DIGESTS, WEIGHTS, ASKED, PLACES)
"""Files of what is remembered: where data sets lie, digests of files, what was asked of an artifact in vain, and how
much of the tokens of images place tells."""


@dataclass
class Context:
    """Where a stage works and whom it tells.

    In a call ``by_recipe`` nothing counts that was asked by hand before. With ``current`` what is made or
    reused becomes what a call that names none takes. ``read_only`` writes nothing there, not even what is
    remembered: the context of a dry run. Of a data set only ``most_images`` are taken, evenly spread.
    ``sources`` are the files that the key of the call was made from. Images in object storage are kept in
    ``cache``.
    """

    workspace: Workspace = field(default_factory=lambda: Workspace(Path(DEFAULT_WORKSPACE)))
    reporter: Reporter = field(default_factory=Silent)
    force: bool = False
    read_only: bool = False
    most_images: int | None = None
    by_recipe: bool = False
    current: bool = True
    sources: Sources = field(default_factory=Sources)
    cache: Cache = field(default_factory=Cache.of_environment)

    def __post_init__(self) -> None:
        given: object = self.workspace
        if not isinstance(given, Workspace):
            raise UsageError(
                f"A context takes a workspace, Context(Workspace(...)), and was given '{given}'."
            )

    def say(self, artifact: Artifact, reused: bool) -> Artifact:
        """Tell that an artifact was written or reused, and return it."""
        manifest = artifact.manifest
        outcome = "reused" if reused else f"written in {manifest.seconds:.1f} s"
        self.reporter.info(f"{manifest.kind} '{manifest.id}' {outcome}")
        if artifact.is_here and (picture := artifact.picture) is not None:
            self.reporter.info(f"look at '{picture}'")
        if manifest.used_labels:
            self.reporter.warn(f"'{manifest.id}' used labels: it is a diagnosis, not an unsupervised result")
        for warning in manifest.warnings:
            self.reporter.warn(warning)
        return artifact

    def remembered(self, name: str) -> dict[str, Any]:
        """Return what a file of the workspace remembers; it is a convenience, and may be missing or damaged."""
        try:
            value = json.loads((self.workspace.root / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def remember(self, name: str, values: dict[str, Any]) -> None:
        """Keep values in a file of the workspace, in place of what it remembered."""
        if self.read_only:
            return
        try:
            self.workspace.root.mkdir(parents=True, exist_ok=True)
            write_json(self.workspace.root / name, values)
        except OSError:
            return  # a read-only workspace fails where it matters, with its own message
