"""What the values of a collection's labels mean: settled over all files, before any is read as classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.progress import Reporter, Silent
from unsupseg_cli.core.words import counted
from unsupseg_cli.data.images import open_image, orientation_of
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.labels import LabelSpace, read_label

_WHITES = {255, 65535}  # of 8 and of 16 bits
_MUCH_VOID = 0.25  # of the pixels: more than labelled sets usually leave out
_NO_CLASS = {"void", "ignore", "ignored", "unlabeled", "unlabelled", "border", "boundary"}
_SHOWN = 8  # classes named in a remark
Color = tuple[int, int, int]


@dataclass
class _Survey:
    """What was seen: the place of each palette entry in use, white masks, images that are turned."""

    palettes: dict[tuple[int, Color], str] = field(default_factory=dict)
    whites: set[int] = field(default_factory=set)
    other: bool = False
    turned: list[Item] = field(default_factory=list)


def settle_labels(
    items: Iterable[Item], space: LabelSpace, reporter: Reporter | None = None
) -> tuple[LabelSpace, list[str]]:
    """Return the space as these labels are to be read, and remarks for the user.

    Only what leaves a doubt is decoded: palette images, and all labels of two classes whose void was not stated.
    Masks of 0 and 255 (of 16 bits, or 65535) alone mean the first class and the second. Where the colours of palettes
    are those of other classes than their numbers say, they are read by colour if the class file gives no numbers.
    A reporter is told the progress.

    Raises:
        UsageError: the class file gives numbers and colours, and the palettes contradict it; or it names one class and
            the masks hold two values.
    """
    survey = _look_over([item for item in items if item.label is not None], space, reporter or Silent())
    remarks = _remark_on_turns(survey.turned)
    if len(survey.whites) == 1 and not survey.other and _white_is_open(space):
        white = survey.whites.pop()
        space = _with_white_as_class(space, white)
        remarks.append(
            f"the labels hold 0 and {white} only: 0 is read as '{space.names[0]}', {white} as '{space.names[1]}' "
            f'(state "void": {white} in a JSON --class-file if {white} means no class)'
        )
    space, remark = _settle_palettes(space, survey.palettes)
    return space, remarks + remark + _remark_on_names(space)


def remark_on_counts(space: LabelSpace, pixels: Mapping[int, int]) -> list[str]:
    """Return remarks on classes that never occur and on much void, from the pixels of each class and of VOID."""
    remarks, total = [], sum(pixels.values())
    absent = [name for index, name in enumerate(space.names) if not pixels.get(index)]
    if absent and total:
        names = ", ".join(absent[:_SHOWN]) + (
            f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        )
        remarks.append(f"{len(absent)} of {len(space.names)} classes never occur in these labels: {names}")
    share = pixels.get(VOID, 0) / max(1, total)
    if share > _MUCH_VOID:
        void = ", ".join(map(str, sorted(space.void))) or "black"
        remarks.append(f"{100 * share:.0f} % of the labels' pixels are void ({void}) and are not scored")
    return remarks


def _white_is_open(space: LabelSpace) -> bool:
    return not space.void_given and space.void == {255} and len(space.names) <= 2


def _with_white_as_class(space: LabelSpace, white: int) -> LabelSpace:
    if len(space.names) == 1:
        raise UsageError(
            f"The labels hold 0 and {white} only, but the class file '{space.name}' names one class, "
            f"'{space.names[0]}': "
            'name both, such as background and it, or state "void" in a JSON --class-file.'
        )
    return replace(space, mapping={0: 0, white: 1}, void=frozenset(), numbers="given")


def _look_over(items: list[Item], space: LabelSpace, reporter: Reporter) -> _Survey:
    survey = _Survey()
    for item in reporter.track(items, "look over labels", total=len(items)):
        assert item.label is not None
        if orientation_of(item.image) != orientation_of(item.label):
            survey.turned.append(item)
        if item.label.suffix == ".mat":
            continue
        try:
            _look_at(item, space, survey)
        except UnsupsegError:
            continue  # said where the label is read
    return survey


def _look_at(item: Item, space: LabelSpace, survey: _Survey) -> None:
    assert item.label is not None
    with open_image(item.label) as image:
        palette = image.getpalette("RGB") if image.mode == "P" else None
    doubtful = _white_is_open(space) and not survey.other
    if palette is None and not doubtful:
        return
    raw = read_label(item.label)
    values = np.unique(raw).tolist() if raw.ndim == 2 else []
    survey.whites |= _WHITES & set(values)
    survey.other |= raw.ndim == 3 or bool(set(values) - {0} - _WHITES)
    if palette is not None and not _is_ramp(palette):
        for value in values:
            color = (*palette[3 * value : 3 * value + 3], 0, 0, 0)[:3]
            survey.palettes.setdefault((value, (color[0], color[1], color[2])), str(item.label))


def _is_ramp(palette: list[int]) -> bool:
    """Tell whether a palette shows its numbers as shades of gray, so that its colours say nothing."""
    return palette == [place // 3 for place in range(len(palette))]


def _settle_palettes(
    space: LabelSpace, palettes: Mapping[tuple[int, Color], str]
) -> tuple[LabelSpace, list[str]]:
    if not palettes or space.numbers == "none":
        return space, []
    if not space.by_color:
        return space, _remark_on_palettes(palettes)
    by_number = [space.of_number(value) for value, _ in palettes]
    by_color = space.of_colors(np.array([color for _, color in palettes])).tolist()
    differing = [
        place
        for place, (number, color) in enumerate(zip(by_number, by_color, strict=True))
        if color >= VOID and color != number
    ]
    if not differing:
        return space, []
    (value, shown), file = list(palettes.items())[differing[0]]
    readings = (
        f"the number {value} of '{file}' is {_name_of(space, by_number[differing[0]])}, its palette colour {shown} "
        f"{_name_of(space, by_color[differing[0]])}"
    )
    if min(by_color) < VOID:  # not all colours are those of classes: the palette is another's
        return space, [f"{readings}; labels are read by number, since other colours are of no class"]
    if space.numbers == "given" and min(by_number) >= VOID:
        raise UsageError(
            f"The class file '{space.name}' gives numbers and colours, and they contradict the labels' palettes: "
            f'{readings}. Take "color" out of the --class-file to read numbers, or "id" to read colours.'
        )
    return replace(space, palette="colors"), [
        f"{readings}: labels with a palette are read by colour, as the class file gives them"
    ]


def _remark_on_palettes(palettes: Mapping[tuple[int, Color], str]) -> list[str]:
    """Return a remark where one number has other colours in other files: colour masks saved with palettes."""
    seen: dict[int, tuple[Color, str]] = {}
    for (value, color), file in palettes.items():
        other, where = seen.setdefault(value, (color, file))
        if other != color:
            return [
                f"the palettes of the labels differ: the number {value} is {other} in '{where}' and {color} in '{file}'"
                '. They are read by number; if colours are meant, give every class its "color" in a JSON --class-file'
            ]
    return []


def _remark_on_names(space: LabelSpace) -> list[str]:
    return [
        f"the class '{name}' of '{space.name}' is scored like any other: if it means no class, take it out of the "
        'class file, or state its number as "void" in a JSON --class-file'
        for name in space.names
        if name.lower().strip("_ ") in _NO_CLASS
    ]


def _remark_on_turns(turned: list[Item]) -> list[str]:
    if not turned:
        return []
    first = turned[0]
    assert first.label is not None
    return [
        f"EXIF orientation other than the label's: {counted(len(turned), 'image')} (first '{first.image.name}': "
        f"{orientation_of(first.image)}, '{first.label.name}': {orientation_of(first.label)}): each is turned by its "
        "own, so labels are taken as drawn over the upright image"
    ]


def _name_of(space: LabelSpace, index: int) -> str:
    return f"'{space.names[index]}'" if index >= 0 else "void" if index == VOID else "no class"
