"""What a manifest says of the machine that made an artifact."""

from __future__ import annotations

import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version

import psutil

_PACKAGES = ("unsupseg", "torch", "torchvision", "timm", "numpy", "zarr", "scikit-learn", "pillow")


def describe_environment() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results, and the platform."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process and its children so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return unit * max(process, children)


def resident_memory_bytes() -> int:
    """Return the present resident size of this process in bytes."""
    return int(psutil.Process().memory_info().rss)
