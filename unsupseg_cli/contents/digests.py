"""Digests of what is in files, remembered until they change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from unsupseg_cli.artifacts.canonical import digest_json
from unsupseg_cli.artifacts.context import DIGESTS, WEIGHTS, Context
from unsupseg_cli.artifacts.sources import UNREADABLE, digest_or_unreadable, stamp
from unsupseg_cli.core.errors import UnsupsegError, reason_of
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.labels import LabelSpace


def fingerprint(files: Iterable[tuple[str, Path]], context: Context) -> str:
    """Return a digest of the contents of files under their names, see `file_digests`."""
    return digest_json(sorted(file_digests(files, context)))


def file_digests(files: Iterable[tuple[str, Path]], context: Context) -> list[list[str]]:
    """Return [name, digest of the content] of files; digests are remembered until a file changes.

    The call remembers what it saw (`Sources`). That a file is unreadable is asked again by every call.

    Raises:
        UnsupsegError: a file is gone, or is being written.
    """
    cache = context.remembered(DIGESTS)
    pairs, changed, files = [], False, list(files)
    for name, path in context.reporter.track(files, "digests of files", total=len(files)):
        place = str(path.resolve())
        try:
            seen, entry = stamp(path), cache.get(place)
            if entry is None or entry[:-1] != seen or entry[-1] == UNREADABLE:
                entry = [*seen, digest_or_unreadable(path)]
                if stamp(path) != seen:
                    raise UnsupsegError(f"'{path}' is being written: call again when it is at rest.")
                cache.pop(place, None)
                if entry[-1] != UNREADABLE:
                    cache[place], changed = entry, True
        except OSError as error:
            raise UnsupsegError(
                f"'{path}' cannot be read ({reason_of(error)}); it was there a moment ago."
            ) from None
        context.sources.add(path, seen, entry[-1])
        pairs.append([name, str(entry[-1])])
    if changed:
        context.remember(DIGESTS, cache)
    return pairs


def label_fingerprint(items: Iterable[Item], context: Context) -> str:
    """Return the content fingerprint of the label files; only evaluation and diagnosis call this."""
    return fingerprint(((item.key, item.label) for item in items if item.label is not None), context)


def space_digest(space: LabelSpace) -> str:
    """Return the digest of everything in a label space that decides how labels are read, scored and shown."""
    values = {part.name: getattr(space, part.name) for part in fields(space) if part.name != "hint"}
    return digest_json({name: _plain(value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(value[name]) for name in sorted(value)}
    return sorted(value) if isinstance(value, frozenset) else value


def remember_weights(backbone: str, file: Path, digest: str, context: Context) -> None:
    """Remember the digest of the weights in a file, so that a dry run need not load them."""
    remembered, entry = context.remembered(WEIGHTS), [*stamp(file), digest]
    name = f"{backbone} {file.resolve()}"
    if remembered.get(name) != entry:
        context.remember(WEIGHTS, {**remembered, name: entry})


def remembered_weights(backbone: str, file: Path, context: Context) -> str | None:
    """Return the digest that the weights in a file had, unless the file changed since or was never used."""
    entry = context.remembered(WEIGHTS).get(f"{backbone} {file.resolve()}")
    return str(entry[-1]) if entry and file.exists() and entry[:-1] == stamp(file) else None
