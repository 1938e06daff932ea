"""Running a command in a forked process that dies without warning at a chosen moment of its work on disk."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

_WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}


class Child:
    """How a forked call ended: killed or not, its exit code, and how often it changed files below a folder."""

    def __init__(self, call: Callable[[], int], root: Path, at: int | None = None) -> None:
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reader)
            os._exit(_run(call, root, at, writer))
        os.close(writer)
        _, status = os.waitpid(process, 0)
        with os.fdopen(reader, "rb") as pipe:
            self.changes = int(pipe.read() or 0)
        self.killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        self.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1


def _run(call: Callable[[], int], root: Path, at: int | None, writer: int) -> int:
    count = 0
    watching = True
    folder = str(root.resolve())

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if not watching or not _changes(event, arguments, folder):
            return
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        code = call()
    except BaseException:
        traceback.print_exc()
        code = 99
    watching = False
    os.write(writer, str(count).encode())
    return code


def _changes(event: str, arguments: tuple[object, ...], folder: str) -> bool:
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        path, writes = (arguments[0] if arguments else None), event in _WRITES
    if not writes or not isinstance(path, str | bytes | os.PathLike):
        return False
    return os.path.abspath(os.fsdecode(path)).startswith(folder)  # noqa: PTH100 - without following links
