"""Frames of videos as images (PyAV, extra `video`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.core.errors import UsageError

SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"})
_AHEAD = 300  # frames that are decoded on the way to a later one, instead of looking for it anew


@dataclass(frozen=True)
class VideoHeader:
    """What a video holds: size of its frames upright, the times of all frames in order, frames in a second.

    ``declared`` is how many frames the file says that it has, 0 where it does not say.
    """

    height: int
    width: int
    times: tuple[int, ...]
    rate: float
    declared: int


def is_video(path: Path) -> bool:
    """Tell whether the name of a file is that of a video."""
    return path.suffix.lower() in SUFFIXES


def require_av() -> None:
    """Raise UsageError where the extra `video` is missing."""
    if find_spec("av") is None:
        raise UsageError("Frames of a video need the package av: pip install 'unsupseg[video]'.")


def video_header(path: Path) -> VideoHeader:
    """Return what a video holds, from its packets and its first frame; raises whatever PyAV does."""
    status = path.stat()
    return _header(path, status.st_size, status.st_mtime_ns)


def frame_numbers(path: Path, step: int | None) -> range:
    """Return which frames, counted from 1, are taken of a video: every ``step``-th; by default one of each second."""
    header = video_header(path)
    return range(1, len(header.times) + 1, step or max(1, round(header.rate)))


def read_frame(path: Path, number: int) -> NDArray[np.uint8]:
    """Return a frame (H, W, 3) upright, counted from 1; raises whatever PyAV does, IndexError where there is none."""
    wanted, status = video_header(path).times[number - 1], path.stat()
    video = (str(path), status.st_size, status.st_mtime_ns)
    decoder = _decoders.setdefault(os.getpid(), _Decoder())
    with decoder.lock:
        opened = decoder.frames
        if opened is None or opened.video != video or not 0 < number - opened.number <= _AHEAD:
            opened = decoder.frames = _Frames(video, _decoded(path, wanted))
        opened.number = number
        for frame in opened.frames:
            if frame.pts is not None and frame.pts >= wanted:
                return _upright(frame)
        decoder.frames = None
    raise IndexError(f"frame {number} cannot be decoded")


@dataclass
class _Frames:
    """A video that is open, and the number of the frame that was read last."""

    video: tuple[str, int, int]
    frames: Iterator[Any]
    number: int = 0


@dataclass
class _Decoder:
    """The last video that a process read, for one of its threads at a time."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    frames: _Frames | None = None


_decoders: dict[int, _Decoder] = {}
"""Of each process: one that was forked must not close its parent's, whose threads it does not have."""


@lru_cache(maxsize=64)
def _header(path: Path, size: int, modified: int) -> VideoHeader:
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it has no pictures, only sound or other data")
        stream = container.streams.video[0]
        times = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
        rate = float(stream.average_rate or 25)
        container.seek(0)
        height, width = _upright(next(container.decode(stream))).shape[:2]
    return VideoHeader(height, width, tuple(times), rate, int(stream.frames))


def _decoded(path: Path, wanted: int) -> Iterator[Any]:
    """Yield frames from the last key frame before a time on."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # images are read by several processes
        container.seek(wanted, stream=stream)
        yield from container.decode(stream)


def _upright(frame: Any) -> NDArray[np.uint8]:
    """Return a frame as RGB, turned as its display matrix says (phones film lying on the side)."""
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns))
