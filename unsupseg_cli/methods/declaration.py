"""What a method says of itself: its parts, their options, and what each of them reads. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Literal

from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UnsupsegError, UsageError, did_you_mean, reason_of
from unsupseg_cli.core.ports import FEATURES, ROLES, Port

Background = Literal["none", "outside", "auto"]


@dataclass(frozen=True)
class Needs:
    """What a part is given: nothing else reaches it, and nothing else enters the key of what it makes.

    ``reads`` are the artifacts, ``arrays`` those of the features; ``images`` says whether it sees the pixels of the
    views; ``network`` whether the frozen network that made the features runs in its loop (``optional``: where
    ``--tokens live`` asks for it); ``model`` what of the model that it reads: class prototypes, or the scores that it
    gives to images (`Inputs.segment`); ``identity`` which of the number of classes and the seed it is told;
    ``background`` whether class 0 is what the masks that it reads leave out (``auto``: where they are objects), so that
    `--classes auto` looks for the number of the others within them.
    """

    reads: tuple[Port, ...] = (FEATURES,)
    arrays: tuple[str, ...] = ("patch",)
    images: bool = False
    network: Literal["no", "optional", "always"] = "no"
    model: Literal["prototypes", "scores"] = "prototypes"
    identity: tuple[Literal["classes", "seed"], ...] = ("classes", "seed")
    background: Background = "none"


class MethodOptions(Config):
    """Base of the options of a labeller or a trainer: what ``--set`` takes."""

    def needs(self) -> Needs:
        """Return what the part reads with these options."""
        return Needs()

    def work(self, images: int) -> float:
        """Return the amount of work that the time grows with: images, as often as they are looked at."""
        return float(images)

    def channels(self, dim: int) -> int | None:
        """Return the channels of a trained model's codes, on features of ``dim`` channels; None where it has none."""
        return dim


@dataclass(frozen=True)
class Part:
    """A labeller or a trainer of a method.

    ``target`` is the class that does the work, as ``module:Class``, imported when there is work. ``name`` tells the
    labellers of a method apart where there are several (``pseudolabel --part NAME``).
    """

    options: type[MethodOptions]
    target: str
    name: str = ""
    summary: str = ""

    def load(self) -> Any:
        """Import and return the class; raises UnsupsegError where it cannot be imported."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (Exception, SystemExit) as error:  # a foreign package may fail in any way
            raise UnsupsegError(
                f"'{self.target}', a part of a method, cannot be imported ({reason_of(error)}); mend its package."
            ) from error


@dataclass(frozen=True)
class Deviation:
    """Something that a method does otherwise than what was published: `methods show` and docs/deviations.md tell it.

    ``here`` is the default; ``why`` the reason, and what it brings, with figures where they were measured; ``off`` how
    to get what was published, empty where that is not offered.
    """

    what: str
    here: str
    published: str
    why: str
    off: str = ""


@dataclass(frozen=True)
class Method:
    """One system.

    ``heads`` are the types of feature head and dense network that its models have, each with the module that registers
    it. ``version`` enters the keys of what the method makes: another one says that outputs changed. ``package`` is the
    distribution that a method comes from, empty for the bundled ones. ``deviations`` are those from what was published.
    """

    name: str
    summary: str
    paper: str = ""
    labellers: tuple[Part, ...] = ()
    trainer: Part | None = None
    heads: Mapping[str, str] = field(default_factory=dict)
    version: str = "1"
    package: str = ""
    deviations: tuple[Deviation, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """The labellers, then the trainer."""
        return (*self.labellers, *((self.trainer,) if self.trainer else ()))

    def labeller(self, name: str | None = None) -> Part:
        """Return the labeller of a name, or the only one.

        Raises:
            UsageError: the method has none, none of this name, or several and no name is given.
        """
        if not self.labellers:
            raise UsageError(f"Method '{self.name}' makes no pseudo-labels; its first command is `train`.")
        names = [part.name for part in self.labellers]
        if name is None and len(names) > 1:
            raise UsageError(f"Method '{self.name}' has the parts {', '.join(names)}: name one with --part.")
        if name is None:
            return self.labellers[0]
        for part in self.labellers:
            if part.name == name:
                return part
        if names == [""]:
            raise UsageError(f"Method '{self.name}' has one part without a name; leave --part {name} out.")
        raise UsageError(f"Method '{self.name}' has no part '{name}'{did_you_mean(name, names)}")

    def require_trainer(self) -> Part:
        """Return the trainer; raises UsageError without one."""
        if self.trainer is None:
            raise UsageError(f"Method '{self.name}' trains no model; its only command is `pseudolabel`.")
        return self.trainer

    def import_head(self, kind: str) -> None:
        """Import the module that registers a type of head; raises UnsupsegError where it cannot be imported."""
        try:
            import_module(self.heads[kind])
        except (Exception, SystemExit) as error:  # a foreign package may fail in any way
            raise UnsupsegError(
                f"'{self.heads[kind]}', which has the head '{kind}' of method '{self.name}', cannot be imported "
                f"({reason_of(error)}); mend its package."
            ) from error

    def of_package(self, package: str, version: str) -> Method:
        """Return the method as it comes from an installed package, whose version enters the keys."""
        own_version = "" if self.version == Method.version else f" ({self.version})"
        return replace(self, package=package, version=f"{package} {version}{own_version}")


@contextmanager
def blamed_on(method: Method | None) -> Iterator[None]:
    """Tell an error that was not foreseen as one of the package that a method comes from, if it is a plug-in.

    Raises:
        UnsupsegError: names the method, its package and the error.
    """
    try:
        yield
    except UnsupsegError:
        raise
    except (Exception, SystemExit) as error:
        if method is None or not method.package:
            raise
        raise UnsupsegError(
            f"The method '{method.name}' of {method.version} failed ({type(error).__name__}: {reason_of(error)}): an "
            "error of that package, whose place -v prints."
        ) from error


def check_method(method: Any, name: str) -> Method:
    """Return what a plug-in gave for a name, if it is a method that can be used.

    Raises:
        UnsupsegError: it is something else; the message says what was expected.
    """
    if not isinstance(method, Method):
        raise UnsupsegError(f"expected a Method, found {type(method).__name__}")
    if method.name != name:
        raise UnsupsegError(
            f"expected a method called '{name}', as the entry point is, found '{method.name}'"
        )
    if not isinstance(method.labellers, tuple):
        raise UnsupsegError(f"expected labellers as a tuple, found {type(method.labellers).__name__}")
    for text in (method.name, *(part.name for part in method.parts if isinstance(part, Part) and part.name)):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
            raise UnsupsegError(f"expected a name of letters, digits, _ and -, found '{text}'")
    if not method.parts:
        raise UnsupsegError("expected a labeller or a trainer, found neither")
    for part in method.parts:
        _check_part(part)
    names = [part.name for part in method.labellers]
    if len(set(names)) < len(names) or (len(names) > 1 and "" in names):
        quoted = ", ".join(f"'{part_name}'" for part_name in names)
        raise UnsupsegError(f"expected another name for each labeller, found {quoted}")
    return method


def _check_part(part: Any) -> None:
    if not isinstance(part, Part):
        raise UnsupsegError(f"expected a Part, found {type(part).__name__}")
    if not (isinstance(part.options, type) and issubclass(part.options, MethodOptions)):
        raise UnsupsegError(
            f"expected a class of MethodOptions as the options of a part, found {part.options}"
        )
    if part.target.count(":") != 1:
        raise UnsupsegError(f"expected the target of a part as 'module:Class', found '{part.target}'")
    try:
        reads = part.options().needs().reads
    except Exception as error:
        raise UnsupsegError(
            f"expected options that all have a default, and needs of them, found {' '.join(str(error).split())}"
        ) from error
    roles = [port.role for port in reads]
    if FEATURES not in reads:
        raise UnsupsegError(f"expected a part that reads features, found one that reads {roles or 'nothing'}")
    for port in reads:
        if port.role not in ROLES:
            raise UnsupsegError(f"unknown role '{port.role}'{did_you_mean(port.role, ROLES)}")
        if port.kind != ROLES[port.role]:
            raise UnsupsegError(
                f"expected '{ROLES[port.role]}' as the kind of '{port.role}', found '{port.kind}'"
            )
