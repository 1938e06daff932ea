"""Errors that a person at the terminal reads: what, where, what was expected, how to mend it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

_OF_HDF5 = re.compile(r"\berrno = (\d+)")  # within many words about its own insides
_MANY = 12  # names: of more only those close to the mistyped one are told


class UnsupsegError(Exception):
    """The work failed (exit code 1). The message is one sentence for the user."""

    exit_code = 1


class UsageError(UnsupsegError):
    """The call was wrong (exit code 2): an option, a name or an input does not fit."""

    exit_code = 2


class NodeError(UsageError):
    """A node of a cluster does not fit this machine, whatever the work was."""


class StorageError(UnsupsegError):
    """Where artifacts are written took no more (a full disk, a bucket out of reach), whatever the work was."""


def reason_of(error: BaseException) -> str:
    """Return the first line of what an error says, or its name where it says nothing; the system's words for a disk."""
    if words := getattr(error, "strerror", None):
        return str(words)
    if number := _OF_HDF5.search(str(error)):
        return os.strerror(int(number[1]))
    details = getattr(error, "errors", None)  # of pydantic, whose first line says only how many there are
    if callable(details) and (problems := details()):
        place = ".".join(map(str, problems[0]["loc"]))
        return f"{place}: {problems[0]['msg']}" if place else str(problems[0]["msg"])
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``; did you mean 'dino_vits8'? Known: ...`` for a mistyped name; of many the closest."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    holding = [other for other in names if name and name in other]
    alike = difflib.get_close_matches(name, names, n=_MANY // 2, cutoff=0.4)
    if len(names) > _MANY and (near := list(dict.fromkeys([*holding, *alike]))[: _MANY // 2]):
        return f"{hint} Close to it: {', '.join(near)} (of {len(names)})."
    if len(names) > 2 * _MANY:
        return f"{hint} Known: {', '.join(names[:_MANY])} and {len(names) - _MANY} more."
    return f"{hint} Known: {', '.join(names)}." if names else ". There is none."
