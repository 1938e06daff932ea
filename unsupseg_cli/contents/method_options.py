"""The options of a method as they enter a key."""

from __future__ import annotations

from typing import Any

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.contents.images import fingerprint
from unsupseg_cli.methods.declaration import MethodOptions


def identified(options: MethodOptions, context: Context) -> dict[str, Any]:
    """Return the options that decide the result, a file by the digest of its content.

    A file that is not there keeps its name: the method says how to get it.
    """
    digests = {
        name: fingerprint([(name, path)], context) for name, path in options.files().items() if path.is_file()
    }
    return options.result() | digests
