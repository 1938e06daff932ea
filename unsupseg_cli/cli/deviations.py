"""Where the methods leave what was published: what all share, and the page that tells it of each."""

from __future__ import annotations

from collections.abc import Iterable

from unsupseg_cli.methods.declaration import Deviation, Method

COMMON = (
    Deviation(
        "clusters beyond the number of classes",
        "their pixels are errors",
        "STEGO leaves these pixels out, PriMaPs-EM merges such a cluster into its most frequent class",
        "no prediction is dropped; on one set of extra clusters the published ways gave 6.0 and 1.3 points more",
        "eval --matching stego-extra or primaps-extra, which the result names",
    ),
    Deviation(
        "images of the protocol `primaps`",
        "rounded to whole grey levels",
        "values of any size",
        "images are stored as bytes; half a grey level at most, labels are the same",
    ),
    Deviation(
        "dense CRF",
        "our own, for CPU and GPU",
        "pydensecrf",
        "pydensecrf has to be compiled; 99.0 to 99.9 % of the pixels agree, mIoU within 0.1 (docs/crf.md)",
    ),
)
"""What every evaluation does otherwise."""

_HEAD = """\
# Deviations

What each system does otherwise than its published code: the reason and what it brings, and how to get what was
published. Recipes of published rows (`unsupseg recipes list`) switch off what can be switched off, unless it says so
here. `unsupseg methods show NAME` prints the same, and `unsupseg methods deviations > docs/deviations.md` writes this
page. [fidelity.md](fidelity.md) says what was compared with the published code, and which test holds it.
"""


def page(methods: Iterable[Method]) -> str:
    """Return the page of all methods, as Markdown."""
    parts = [_HEAD, _section("Evaluation, of all methods", COMMON)]
    parts += [_section(method.name, method.deviations) for method in methods]
    return "\n".join(parts)


def _section(title: str, deviations: Iterable[Deviation]) -> str:
    rows = "".join(
        f"| {deviation.what} | {deviation.here} | {deviation.published} "
        f"| {deviation.why} | {_switch(deviation)} |\n"
        for deviation in deviations
    )
    head = "| | here, by default | published | why, and what it brings | as published by |\n|---|---|---|---|---|\n"
    return f"## {title}\n\n{head}{rows}"


def _switch(deviation: Deviation) -> str:
    return deviation.off or "not offered"
