"""Options that name files: what decides a key is what these hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.contents.digests import file_digests
from unsupseg_cli.core.config import Config


def decided_by(options: Config, context: Context) -> dict[str, Any]:
    """Return the result fields of options, with the digest of its content for each file that one names."""
    values = options.result()
    for name in options.marked("file"):
        path = Path(str(values[name]))
        if path.is_file():
            ((_, digest),) = file_digests([(name, path)], context)
            values[name] = f"sha256:{digest}"
    return values
