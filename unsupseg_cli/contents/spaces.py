"""The label space behind an artifact: only names and numbers, never a label file."""

from __future__ import annotations

from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.datasets import dataset_names, space_of
from unsupseg_cli.data.labels import LabelSpace


def named_space(artifact: Artifact) -> LabelSpace | None:
    """Return the label space of the named data set an artifact was made from, if it was a named one."""
    data = artifact.manifest.data
    return space_of(data.dataset) if data is not None and data.dataset in dataset_names() else None


def default_classes(artifact: Artifact) -> int:
    """Return the size of the label space; raises UsageError for a plain folder, which has none."""
    space = named_space(artifact)
    if space is None:
        raise UsageError(
            "The images are a plain folder, whose number of classes nobody knows: give --classes K (try 5 to 30)."
        )
    return len(space.names)
