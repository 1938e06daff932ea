"""Masks of class 0 where class 0 is the background."""

from __future__ import annotations

from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.core.words import are, counted
from unsupseg_cli.methods.interface import MaskSet


def warn_of_background(masks: MaskSet, reporter: Reporter, become: str) -> None:
    """Warn of masks of class 0, as those have that were imported or come of another method; ``become`` says of what."""
    count = sum(int((groups == 0).sum()) for groups in masks.groups)
    if count:
        reporter.warn(
            f"{counted(count, 'mask')} of class 0, which is the background here, {are(count)} {become}; where it is a "
            "class like the others, give --set background=false"
        )
