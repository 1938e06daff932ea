"""The methods by name; nothing of a method is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from unsupseg_cli.core.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Method:
    """One system: where its parts are found and what its training needs.

    ``graph`` says that training reads neighbours, ``live`` that it can have the backbone in the loop, and
    ``continues`` that it can start from the class head of the model that made the features; ``heads`` are the
    types of feature head that the method's module ``network`` registers.
    """

    name: str
    summary: str
    paper: str
    package: str
    pseudolabels: bool = True
    trains: bool = True
    graph: bool = False
    continues: bool = False
    live: bool = False
    heads: tuple[str, ...] = ()

    def pseudolabel_config(self) -> Any:
        """Return the configuration class of ``pseudolabel --method``; raises UsageError without one."""
        if not self.pseudolabels:
            raise UsageError(f"Method '{self.name}' makes no pseudo-labels; its first command is `train`.")
        return import_module(f"{self.package}.config").PseudolabelConfig

    def train_config(self) -> Any:
        """Return the configuration class of ``train --method``; raises UsageError without one."""
        if not self.trains:
            raise UsageError(f"Method '{self.name}' trains no head; its only command is `pseudolabel`.")
        return import_module(f"{self.package}.config").TrainConfig

    def pseudolabeller(self, config: Any, classes: int, seed: int) -> Any:
        """Return a `Pseudolabeller`."""
        return import_module(f"{self.package}.pseudolabel").Pseudolabeller(config, classes, seed)

    def task(self, config: Any, **given: Any) -> Any:
        """Return a `HeadTask`; ``given`` is source, pseudolabels, classes, seed and device.

        A method with ``graph`` is also given ``neighbours``, (N, k) int32: rows of the source's views; one with
        ``live`` may be given ``live``, a `LiveSource` of the same views; one with
        ``continues`` is given ``head``, (K, C): the weight of that class head, or None.
        """
        return import_module(f"{self.package}.train").Task(config, **given)


METHODS = {
    method.name: method
    for method in (
        Method(
            name="kmeans",
            summary="Spherical k-means on frozen patch features: the baseline of every paper",
            paper="the 'baseline' rows of STEGO and PriMaPs-EM",
            package="unsupseg_cli.methods.kmeans",
        ),
        Method(
            name="primaps",
            summary="Principal mask proposals per image, then EM over class prototypes",
            paper="PriMaPs-EM, Hahn et al., TMLR 2024",
            package="unsupseg_cli.methods.primaps",
            live=True,
            continues=True,
        ),
        Method(
            name="stego",
            summary="A head that distils feature correspondences within and between images",
            paper="STEGO, Hamilton et al., ICLR 2022",
            package="unsupseg_cli.methods.stego",
            pseudolabels=False,
            graph=True,
            live=True,
            heads=("stego",),
        ),
    )
}


def get_method(name: str) -> Method:
    """Return a method; raises UsageError with a suggestion for an unknown name."""
    if name not in METHODS:
        raise UsageError(f"Unknown method '{name}'{did_you_mean(name, METHODS)}")
    return METHODS[name]


def import_heads(types: Iterable[str]) -> None:
    """Import the modules that register these types of head, so that a model with them can be built."""
    for kind in types:
        for method in METHODS.values():
            if kind in method.heads:
                import_module(f"{method.package}.network")
