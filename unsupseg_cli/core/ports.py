"""What a piece of work reads: the artifacts that it is given, by role. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Port:
    """An input by its role, which is also the option that names it.

    ``kind`` is the kind of artifact. ``optional``: work goes on without one. ``method``: only artifacts that this
    method made are read; an optional one of them is then taken unasked where it is the last of its kind. Of the
    ports of one ``choice`` exactly one is read, the first where none is named.
    """

    role: str
    kind: str
    optional: bool = False
    method: str = ""
    choice: str = ""


FEATURES = Port("features", "features")
GRAPH = Port("graph", "graph")
REGIONS = Port("regions", "regions")
PSEUDOLABELS = Port("pseudolabels", "pseudolabels")
MODEL = Port("model", "model")
ROLES = {port.role: port.kind for port in (FEATURES, GRAPH, REGIONS, PSEUDOLABELS, MODEL)}
"""The roles that a method may read, with the kind of each."""
