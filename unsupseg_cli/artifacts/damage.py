"""What is said of a file of an artifact that is gone or cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unsupseg_cli.core.errors import UnsupsegError

MEND = "`unsupseg verify` names what is damaged, and running its stage with --force makes it again."
# What json, pyarrow, Pillow and our own look at what they gave raise of a damaged file.
_RAISED = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, SyntaxError)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise UnsupsegError, which names the file, where reading it fails."""
    try:
        yield
    except _RAISED as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "it is missing" if missing else (str(error).splitlines() or [""])[0]
        raise UnsupsegError(f"The file '{path}' cannot be read ({reason}); {MEND}") from None


def read_json(path: Path) -> Any:
    """Return the values in a JSON file of an artifact; raises UnsupsegError where it cannot be read."""
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))
