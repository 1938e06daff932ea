"""Modules that are known by their first line, ``NAME: what it does``, so that a table of them needs no import."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_HEADLINE = re.compile(r'"""([a-z-]+): (.+?)\.?(?:"""|$)')


class Headline(NamedTuple):
    """A module (the name of its file) and what it does, in one line."""

    module: str
    summary: str


def headlines(folder: Path) -> dict[str, Headline]:
    """Return the modules of a folder whose first line is a headline, by the name that stands there."""
    known = {}
    for path in sorted(folder.glob("[!_]*.py")):
        with path.open(encoding="utf-8") as file:
            match = _HEADLINE.match(file.readline().rstrip())
        if match:
            known[match[1]] = Headline(path.stem, match[2])
    return known
