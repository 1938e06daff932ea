"""The classes of a model: new names, new colours, several as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import ImageColor

from unsupseg_cli.contents.model import ModelFile, class_index
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.names import visible

_MARKS = "\u200c\u200d\u200e\u200f"  # joiners and marks of direction, which scripts need


def rename(file: ModelFile, names: Mapping[str, str]) -> ModelFile:
    """Return a model whose classes, given by name or id, have new names.

    Raises:
        UsageError: there is no such class, or a name is empty, a number, taken, or holds ``=``, a comma or
            characters that do not show.
    """
    classes = list(file.classes)
    for index, name in _by_index(file, names).items():
        _require_name(name)
        classes[index] = classes[index].model_copy(update={"name": name})
    taken = [entry.name for entry in classes]
    if duplicate := next((name for name in taken if taken.count(name) > 1), None):
        raise UsageError(f"Two classes would be called '{duplicate}'; merge them, or choose another name.")
    return file.model_copy(update={"classes": classes})


def _require_name(name: str) -> None:
    """Raise UsageError for what cannot be the name of a class."""
    if not name.strip():
        reason = "it is empty"
    elif not all(char.isprintable() or char in _MARKS for char in name):
        reason = "it holds characters that do not show, or that a terminal would obey"
    elif name.isdecimal():
        reason = "a number means the class of that id"
    elif name != name.strip() or set(name) & {",", "="}:
        reason = "expected text without commas and '='"
    else:
        return
    raise UsageError(f"'{visible(name)}' cannot be the name of a class: {reason}.")


def recolor(file: ModelFile, colors: Mapping[str, str]) -> ModelFile:
    """Return a model whose classes have new colours: ``#a0522d``, ``160,82,45`` or ``sienna``.

    Raises:
        UsageError: there is no such class or colour.
    """
    classes = list(file.classes)
    for index, text in _by_index(file, colors).items():
        classes[index] = classes[index].model_copy(update={"color": _color(text)})
    return file.model_copy(update={"classes": classes})


def _color(text: str) -> tuple[int, int, int]:
    try:
        parts = [int(part) for part in text.split(",")] if "," in text else ImageColor.getrgb(text)[:3]
    except ValueError:
        parts = []
    if len(parts) != 3 or not all(0 <= part <= 255 for part in parts):
        raise UsageError(f"'{text}' is no colour: expected such as #a0522d, 160,82,45 or sienna.")
    return parts[0], parts[1], parts[2]


def _by_index(file: ModelFile, values: Mapping[str, str]) -> dict[int, str]:
    """Return values by the index of their class."""
    by_index: dict[int, str] = {}
    for reference, value in values.items():
        index = class_index(reference, file.classes, file.outputs_of_classes)
        if index in by_index:
            entry = file.classes[index]
            raise UsageError(f"Class {entry.id}, '{entry.name}', is given twice.")
        by_index[index] = value
    if not by_index:
        raise UsageError("No class was given: expected CLASS=VALUE, such as 3=road.")
    return by_index


def merge(file: ModelFile, groups: Sequence[Sequence[str]]) -> ModelFile:
    """Return a model in which each group of classes is one: the first of the group, under its id, name and colour.

    A pixel of one of them becomes a pixel of the merged class; nothing else changes. The ids of the others are of no
    class any more.

    Raises:
        UsageError: there is no such class, a group has fewer than two, or a class is in two groups.
    """
    into = list(range(len(file.classes)))
    chosen = [
        [class_index(reference, file.classes, file.outputs_of_classes) for reference in group]
        for group in groups
    ]
    indices = [index for group in chosen for index in group]
    if not chosen or any(len(group) < 2 for group in chosen):
        raise UsageError("A group to merge has at least two classes, separated by commas, such as 3,5.")
    duplicate = next((index for index in indices if indices.count(index) > 1), None)
    if duplicate is not None:
        entry = file.classes[duplicate]
        raise UsageError(f"Class {entry.id}, '{entry.name}', is given twice.")
    for first, *others in chosen:
        for index in others:
            into[index] = first
    remaining = sorted(set(into))
    class_of = [remaining.index(into[index]) for index in file.index_of_outputs]
    return file.model_copy(
        update={"classes": [file.classes[index] for index in remaining], "class_of": class_of}
    )


def classes_record(file: ModelFile) -> list[dict[str, Any]]:
    """Return what ``classes.json`` says of each class: id, name, colour, and the outputs that it is made of."""
    return [
        {"id": entry.id, "name": entry.name, "color": list(entry.color), "clusters": outputs}
        for entry, outputs in zip(file.classes, file.outputs_of_classes, strict=True)
    ]
