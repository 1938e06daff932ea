"""What lost attempts left in a bucket."""

from __future__ import annotations

from collections.abc import Iterable

from unsupseg_cli.storage.claims import CLAIMS, Claims
from unsupseg_cli.storage.objects import Objects
from unsupseg_cli.storage.records import PUBLISHED, Records
from unsupseg_cli.storage.shared import SHARES, attempt_of

DAMAGED = "damaged"
"""Where `verify` marks what it found damaged."""
_NO_KINDS = (PUBLISHED, CLAIMS, SHARES, DAMAGED)


def leftovers(objects: Objects, records: Records, claims: Claims, *, shared: bool) -> list[str]:
    """Return the prefixes of attempts that are not published and that nobody makes now.

    Those of a record that cannot be read stay: it may be of a newer version of the tool, and name one of them.
    With ``shared`` also what several machines make together, some of which may not have begun yet.
    """
    known = records.known()
    published = {f"{name.partition('/')[0]}/{one.id}/{one.attempt}" for name, one in known.items()}
    unread = tuple(name.partition("/")[::2] for name, one in known.items() if one.problem)
    paths = [item.path.split("/") for item in objects.list()]
    begun = {"/".join(parts[:2]) for parts in paths if parts[0] == SHARES}
    attempt_by_scratch = {scratch: attempt_of(objects, scratch) for scratch in begun}
    live = claims.live()
    busy = {name for name in begun if any(one.startswith(name.partition("/")[2]) for one in live)}
    kept = {*live.values(), *(attempt_by_scratch[name] for name in (busy if shared else begun))}
    attempts = {"/".join(parts[:3]) for parts in paths if len(parts) > 3 and parts[0] not in _NO_KINDS}
    left = [
        prefix
        for prefix in sorted(attempts - published)
        if prefix.rpartition("/")[2] not in kept and not _is_of(prefix, unread)
    ]
    done = {"", *(prefix.rpartition("/")[2] for prefix in published)}
    idle = sorted(begun - busy)
    return [*left, *(name for name in idle if shared or attempt_by_scratch[name] in done)]


def _is_of(prefix: str, records: Iterable[tuple[str, str]]) -> bool:
    """Tell whether an attempt is of one of some records, given by kind and key."""
    kind, identity, _ = prefix.split("/")
    return any(kind == of and identity.endswith(key[:8]) for of, key in records)
