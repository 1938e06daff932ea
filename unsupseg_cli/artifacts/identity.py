"""What decides an artifact: its key is the digest of this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unsupseg_cli.artifacts.canonical import digest_json
from unsupseg_cli.artifacts.manifest import DataSource, Input, Manifest
from unsupseg_cli.core.names import file_name

_LONGEST = 120  # bytes of the readable part of an id
UNKNOWN = "unknown"
"""What a dry run does not know: the digest of images that were not read, or of weights that were not loaded yet."""


@dataclass(frozen=True)
class Identity:
    """Everything that decides what an artifact contains: its key is the digest of this."""

    kind: str
    stage: str
    stage_version: int
    slug: str
    config: dict[str, Any]
    inputs: list[Input] = field(default_factory=list)
    data: DataSource | None = None
    weights: str = ""
    execution: dict[str, Any] = field(default_factory=dict)
    used_labels: bool = False
    label_fingerprint: str = ""

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of what decides the result."""
        return digest_json(
            {
                "stage": self.stage,
                "version": self.stage_version,
                "config": self.config,
                "inputs": [[item.role, item.key] for item in self.inputs],
                "images": self.data.fingerprint if self.data else "",
                "labels": self.label_fingerprint,
                "weights": self.weights,
            }
        )

    @property
    def id(self) -> str:
        """The artifact's name: ``<slug>-<first 8 digits of the key>``."""
        return f"{file_name(self.slug, _LONGEST)}-{self.key[:8]}"

    def manifest(self, **outcome: Any) -> Manifest:
        """Return the manifest of the artifact; ``outcome`` are the fields that only the work tells."""
        return Manifest(
            kind=self.kind,
            id=self.id,
            stage=self.stage,
            stage_version=self.stage_version,
            key=self.key,
            config=self.config,
            execution=self.execution,
            inputs=self.inputs,
            data=self.data,
            used_labels=self.used_labels,
            **outcome,
        )
