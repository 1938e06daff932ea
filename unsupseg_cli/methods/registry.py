"""The methods by name: the bundled ones, and those of installed packages (entry points ``unsupseg.methods``).

Nothing of a method is imported before it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from unsupseg_cli.core.errors import UnsupsegError, UsageError, did_you_mean, reason_of
from unsupseg_cli.methods.declaration import Method, check_method

GROUP = "unsupseg.methods"
BUNDLED = {
    "context": "unsupseg_cli.methods.context",
    "kmeans": "unsupseg_cli.methods.kmeans",
    "maskdistill": "unsupseg_cli.methods.maskdistill",
    "primaps": "unsupseg_cli.methods.primaps",
    "spectral": "unsupseg_cli.methods.spectral",
    "stego": "unsupseg_cli.methods.stego",
    "transfgu": "unsupseg_cli.methods.transfgu",
}
"""The package of each method, whose ``METHOD`` is its declaration."""


def method_names() -> list[str]:
    """Return the names of all methods, the bundled ones first."""
    return [*BUNDLED, *sorted(_plugins().keys() - BUNDLED.keys())]


def get_method(name: str) -> Method:
    """Return a method.

    Raises:
        UsageError: there is none of this name; the message has a suggestion.
        UnsupsegError: it comes from a package that cannot be imported, or that declares no method.
    """
    if name in BUNDLED:
        method: Method = import_module(BUNDLED[name]).METHOD
        return method
    if name not in _plugins():
        raise UsageError(f"Unknown method '{name}'{did_you_mean(name, method_names())}")
    entry, *others = _plugins()[name]
    if others:
        packages = " and ".join(sorted(map(_package, (entry, *others))))
        raise UnsupsegError(f"The method '{name}' comes from {packages}: uninstall all but one of them.")
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the one line of a command
            method = check_method(entry.load(), name)
    except (Exception, SystemExit) as error:  # a foreign package may fail in any way
        reason = reason_of(error)
        raise UnsupsegError(
            f"The method '{name}' of the package {_package(entry)} cannot be used ({entry.value}: {reason}); mend the "
            f"package, or uninstall it."
        ) from error
    return method.of_package(*_distribution(entry))


def method_of(artifact: str, config: Mapping[str, Any]) -> Method:
    """Return the method that made an artifact, by the configuration in its manifest.

    Raises:
        UsageError: it is not installed any more.
    """
    try:
        return get_method(str(config["method"]))
    except UsageError:
        raise UsageError(f"'{artifact}' was made by the {not_installed(config)}; install it again.") from None


def not_installed(config: Mapping[str, Any]) -> str:
    """Say which method a configuration names, if it is not installed any more; else nothing."""
    name, version = config.get("method"), str(config.get("method_version", ""))
    if name is None or name in method_names():
        return ""
    return f"method '{name}'{f' of {version}' if ' ' in version else ''}, which is not installed"


def usable_methods() -> Iterator[Method]:
    """Yield every method that can be imported."""
    for name in method_names():
        try:
            yield get_method(name)
        except UnsupsegError:
            continue


def broken_plugins() -> list[str]:
    """Return why each plug-in that cannot be used cannot, and which ones a bundled method hides."""
    problems = []
    for name, entries in _plugins().items():
        if name in BUNDLED:
            packages = " and ".join(map(_package, entries))
            problems.append(
                f"The method '{name}' of {packages} is hidden by the bundled method of this name."
            )
            continue
        try:
            get_method(name)
        except UnsupsegError as error:
            problems.append(str(error))
    return problems


def import_heads(types: Iterable[str]) -> None:
    """Import the modules that register these types of head, so that a model with them can be built."""
    from unsupseg_cli.models.heads import HEADS

    for kind in set(types) - HEADS.keys():
        method = next((method for method in usable_methods() if kind in method.heads), None)
        if method is not None:
            method.import_head(kind)


@cache
def _plugins() -> dict[str, list[EntryPoint]]:
    """Return the entry points of installed packages by the name of their method."""
    plugins: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        plugins.setdefault(entry.name, []).append(entry)
    return plugins


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else ("an unknown package", "?")


def _package(entry: EntryPoint) -> str:
    return " ".join(_distribution(entry))
