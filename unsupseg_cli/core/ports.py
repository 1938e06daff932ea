"""What a piece of work reads: the artifacts that it is given, by role. This module imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from unsupseg_cli.core.errors import UsageError


@dataclass(frozen=True)
class Port:
    """An input by its role, which is also the option that names it.

    ``kind`` is the kind of artifact. ``optional``: work goes on without one. ``method``: only artifacts that this
    method made are read; an optional one of them is then taken unasked where it is the last of its kind. ``layout``:
    only regions of this layout are read. ``views``: what was made from other features is read too where these have the
    same views. Of the ports of one ``choice`` exactly one is read: the one named, else the
    first of which there is one.
    """

    role: str
    kind: str
    optional: bool = False
    method: str = ""
    choice: str = ""
    layout: str = ""
    views: bool = False


FEATURES = Port("features", "features")
GRAPH = Port("graph", "graph")
REGIONS = Port("regions", "regions")
PSEUDOLABELS = Port("pseudolabels", "pseudolabels")
MASKS = Port("masks", "masks")
MODEL = Port("model", "model")
SUPPORT = Port("support", "regions", optional=True)
STORED = Port("features", "features", optional=True)
"""Tokens of the images that a model is applied to, instead of its backbone."""
ROLES = {port.role: port.kind for port in (FEATURES, GRAPH, REGIONS, PSEUDOLABELS, MASKS, MODEL, SUPPORT)}
"""The roles that a method may read, with the kind of each."""
ANY_MASKS = (replace(PSEUDOLABELS, choice="masks"), replace(MASKS, choice="masks"))
"""Masks of a labeller, or from outside: for a method that reads either."""
_FIRST = {"pseudolabels": 0, "features": 1}  # what other inputs follow


def ports_to_fill(
    ports: Sequence[Port], named: Collection[str], there: Callable[[Port], bool] = lambda port: True
) -> list[Port]:
    """Return the ports that are read, in the order in which they are filled.

    Of the ports of one choice it is the one named, else the first for which something is ``there``, else the first.

    Raises:
        UsageError: two of one choice are named.
    """
    filled = []
    for port in ports:
        choice = [other for other in ports if port.choice and other.choice == port.choice]
        given = [other for other in choice if other.role in named]
        if len(given) > 1:
            raise UsageError(f"Give {' or '.join(f'--{other.role}' for other in given)}, not both.")
        if not choice or port == (given or [other for other in choice if there(other)] or choice)[0]:
            filled.append(port)
    return sorted(filled, key=lambda port: _FIRST.get(port.role, len(_FIRST)))
