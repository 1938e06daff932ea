"""Class files: this tool's own and those of annotation tools, brought to one form; what is neither is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Entry = dict[str, Any]
Numbers = Literal["given", "positions", "none"]
"""Where the class numbers of label images come from: the file, the order of its entries, or nowhere."""

_KEYS = {"name", "id", "ids", "color", "kind", "clusters"}
_TOP = {"classes", "void", "rgb", "hint", "source"}
_TABLE_WORDS = {
    "name",
    "class",
    "classes",
    "label",
    "id",
    "index",
    "idx",
    "value",
    "pixel value",
    "r",
    "g",
    "b",
}
_HEADINGS = {"name", "names", "class", "classes", "class name", "label", "labels", "category", "categories"}
_COMMENT = re.compile(r"(#(?![0-9a-fA-F]{6}\b)|//|%)")  # a colour such as #ff0000 is none
_COLOR_WORDS = {"r": 0, "g": 1, "b": 2, "red": 0, "green": 1, "blue": 2}
_NAME_WORDS = ("name", "class", "label", "classes")
_ID_WORDS = ("id", "index", "idx", "value", "pixel value", "class id", "label id")


@dataclass(frozen=True)
class ClassFile:
    """The entries of a class file (``name``, and some of ``id``, ``ids``, ``color``, ``kind``).

    ``void`` is None where the file says nothing of it; ``origin`` names the tool whose format it is.
    """

    entries: list[Entry]
    void: Any = None
    numbers: Numbers = "positions"
    origin: str = ""


def read_class_file(path: Path) -> ClassFile:
    """Read and recognise a class file.

    Recognised are JSON of this tool, Supervisely's ``meta.json``, CVAT's labels, COCO's and Label Studio's
    ``categories``, tables from names to colours or numbers; and as text one name a line, CVAT's ``labelmap.txt``,
    labelme's ``labels.txt``, colour tables (of GIMP and QGIS too) and numbered lists.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is no UTF-8.
        ValueError: it is of a format that is not read; the message says which, and what to do.
    """
    text = path.read_text(encoding="utf-8-sig")
    start = text.lstrip()[:1]
    if len(lines := [line for line in text.splitlines() if line.strip()]) > 1 and all(map(_is_record, lines)):
        raise ValueError(
            "it is a record of JSON a line, such as exports of Labelbox: write the names one a line"
        )
    if path.suffix.lower() == ".json" or start in ("{", "["):
        try:
            return _of_json(json.loads(text))
        except RecursionError:
            raise ValueError("it is nested without end") from None
    if start == "<":
        raise ValueError("it is XML, perhaps a labelling configuration: write its names one a line")
    if path.suffix.lower() in {".yaml", ".yml"} or re.match(
        r"(?m)\s*(names|nc|train|path)\s*:\s*($|[\[\d.])", text
    ):
        raise ValueError("it is YAML: write its names one a line, or as JSON")
    if re.match(r"\s*item\s*\{", text):
        raise ValueError("it is a .pbtxt label map: write its names one a line, or as JSON with their ids")
    return _of_lines([line.strip() for line in text.splitlines() if line.strip()])


def _is_record(line: str) -> bool:
    return line.startswith("{") and line.rstrip().endswith("}")


# JSON ----------------------------------------------------------------------------------------------------


def _of_json(content: Any) -> ClassFile:
    entries = content.get("classes") if isinstance(content, dict) else content
    if isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries):
        if isinstance(content, dict) and all("title" in entry for entry in entries):
            return _named_by_color("Supervisely", entries, "title")
        if all("attributes" in entry and "name" in entry for entry in entries):
            return _named_by_color("CVAT", entries, "name")
        if any("annotations" in entry or "predictions" in entry for entry in entries):
            raise ValueError("it holds annotations (of Label Studio, it seems), no list of classes")
    if isinstance(content, dict) and any(key.startswith("_via_") for key in content):
        raise ValueError("it is a project of the VGG Image Annotator: write its names one a line")
    if not isinstance(content, dict):
        return _own({"classes": content})
    if "classes" in content:
        return _own(content)
    if isinstance(content.get("categories"), list):
        return _of_categories(content["categories"])
    return _of_table(content)


def _own(content: Entry) -> ClassFile:
    """Read a class file of this tool's own form."""
    if unknown := sorted(set(content) - _TOP):
        raise ValueError(f"'{unknown[0]}' is not known; known are classes and void")
    if not isinstance(content["classes"], list):
        raise TypeError('"classes" is no list')
    _require_kind(content["classes"], "class", str | dict, "a name, or an object with name")
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in content["classes"]]
    for entry in entries:
        if unknown := sorted(set(entry) - _KEYS):
            raise ValueError(f"'{unknown[0]}' of a class is not known; known are {', '.join(sorted(_KEYS))}")
    given = bool(entries) and all({"id", "ids"} & set(entry) for entry in entries)
    return ClassFile(entries, content.get("void"), "given" if given else "positions")


def _require_kind(entries: list[Any], noun: str, kind: Any, expected: str) -> None:
    """Raise ValueError where an entry of a list is of another kind."""
    for number, entry in enumerate(entries):
        if not isinstance(entry, kind):
            raise ValueError(f"{noun} number {number} is {json.dumps(entry)}, expected {expected}")


def _named_by_color(origin: str, entries: list[Entry], name: str) -> ClassFile:
    """Read classes of a tool whose ids are those of its data base, not numbers in label images: by colour only."""
    if not all("color" in entry for entry in entries):
        raise ValueError(f"it is of {origin}, and a class has no color: write the names one a line instead")
    named = [{"name": entry[name], "color": entry["color"]} for entry in entries]
    return ClassFile(named, numbers="none", origin=origin)


def _of_categories(categories: list[Entry]) -> ClassFile:
    _require_kind(categories, "category", dict, "an object with name")
    entries: list[Entry] = [
        {key: entry[key] for key in ("name", "id", "color") if key in entry or key == "name"}
        | ({"kind": "thing" if entry["isthing"] else "stuff"} if "isthing" in entry else {})
        for entry in categories
    ]
    given = all("id" in entry for entry in entries)
    return ClassFile(entries, numbers="given" if given else "positions", origin="a list of categories")


def _of_table(content: Entry) -> ClassFile:
    """Read a table from names to colours or numbers, or from numbers to names."""
    pairs = list(content.items())
    if pairs and all(isinstance(value, list) and len(value) == 3 for _, value in pairs):
        entries: list[Entry] = [{"name": name, "color": value} for name, value in pairs]
        return ClassFile(entries, numbers="none", origin="a table of colours")
    if pairs and all(isinstance(value, int) and not isinstance(value, bool) for _, value in pairs):
        return ClassFile(
            [{"name": name, "id": value} for name, value in pairs], None, "given", "a table of numbers"
        )
    if pairs and all(name.isdecimal() and isinstance(value, str) for name, value in pairs):
        entries = [{"name": value, "id": int(name)} for name, value in pairs]
        return ClassFile(entries, None, "given", "a table of numbers")
    raise KeyError("classes")


# Text ----------------------------------------------------------------------------------------------------


def _of_lines(lines: list[str]) -> ClassFile:
    if lines and lines[0].startswith("# label:color_rgb"):
        return _of_cvat(lines[1:])
    lines = [line for line in lines if not _COMMENT.match(line)]
    if lines and lines[0] == "GIMP Palette":
        lines = [line for line in lines[1:] if not line.startswith(("Name:", "Columns:"))]
    if lines and lines[0].startswith("INTERPOLATION:"):  # QGIS
        lines = lines[1:]
    if len(lines) > 1 and lines[0].lower() in _HEADINGS:
        lines = lines[1:]
    if lines and lines[0] == "__ignore__":  # labelme counts from -1, so that _background_ is 0
        return ClassFile([{"name": line} for line in lines[1:]], 255, origin="labelme")
    if lines and all(re.fullmatch(r"\d+([\s,;]+\d+)+", line) for line in lines):
        raise ValueError("its lines hold numbers only; expected one name a line")
    table = [_cells(line) for line in lines]
    if table and _is_header(table[0]):
        return _of_columns([cell.lower() for cell in table[0]], table[1:])
    forms: tuple[Callable[[list[str]], ClassFile | None], ...] = (_of_cvat_lines, _color_table, _numbered)
    for form in forms:
        if class_file := form(lines):
            return class_file
    columns = {len(re.split(r"[,;|\t]", line)) for line in lines}
    if len(lines) > 1 and len(columns) == 1 and columns != {1}:
        raise ValueError("it is a table of columns without a known heading; expected one name a line")
    if len(lines) == 1 and re.search(r"[,;\t]", lines[0]):
        raise ValueError("it is one line with several names, it seems; expected one name a line")
    return ClassFile([{"name": line} for line in lines])


def _of_cvat(lines: list[str]) -> ClassFile:
    class_file = _of_cvat_lines([line for line in lines if not line.startswith("#")])
    if class_file is None:
        raise ValueError("a line of CVAT's labelmap.txt is not of the form label:r,g,b:parts:actions")
    return class_file


def _of_cvat_lines(lines: list[str]) -> ClassFile | None:
    """Read ``label:r,g,b:parts:actions``, without its heading."""
    matches = [re.fullmatch(r"(.+?):(\d+),(\d+),(\d+):.*", line) for line in lines]
    entries = [_colored(match[1], match.groups()[1:]) for match in matches if match]
    if not lines or len(entries) < len(lines):
        return None
    return ClassFile(entries, numbers="none", origin="CVAT's labelmap.txt")


def _color_table(lines: list[str]) -> ClassFile | None:
    """Read lines of a name and three numbers in either order, with or without a number in front."""
    entries: list[Entry] = []
    for line in lines:
        parts = [part for part in re.split(r"[\s,;:]+", line) if part]
        numeric = [part.isdecimal() for part in parts]
        if len(parts) > 5 and all(numeric[:5]) and not any(numeric[5:]):
            del parts[4]  # QGIS: number, red, green, blue, alpha, name
            del numeric[4]
        number = parts.pop(0) if len(parts) > 4 and numeric[0] and not numeric[1] else None
        numeric = [part.isdecimal() for part in parts]
        if len(parts) < 4:
            return None
        if all(numeric[-3:]) and not any(numeric[:-3]):
            entry = _colored(" ".join(parts[:-3]), parts[-3:])
        elif all(numeric[:3]) and not any(numeric[3:]):
            entry = _colored(" ".join(parts[3:]), parts[:3])
        elif len(parts) > 4 and all(numeric[:4]) and not any(numeric[4:]):
            number, entry = parts[0], _colored(" ".join(parts[4:]), parts[1:4])
        else:
            return None
        entries.append(entry | ({} if number is None else {"id": int(number)}))
    if not entries:
        return None
    numbered = sum("id" in entry for entry in entries)
    if numbered not in (0, len(entries)):
        return None
    return ClassFile(entries, numbers="given" if numbered else "none", origin="a table of colours")


def _numbered(lines: list[str]) -> ClassFile | None:
    """Read lines of a number and a name, in either order where a mark stands between them."""
    matches = [re.fullmatch(r"(\d+)(?:\s*[:,;=]\s*|\s+)(.*\D.*)", line) for line in lines]
    if not all(matches):
        matches = [re.fullmatch(r"(?P<name>.*\D)\s*[:,;=\t]\s*(?P<id>\d+)", line) for line in lines]
        pairs = [(match["id"], match["name"]) for match in matches if match]
    else:
        pairs = [(match[1], match[2]) for match in matches if match]
    if not lines or len(pairs) < len(lines):
        return None
    entries: list[Entry] = [{"name": name.strip().strip("'\""), "id": int(number)} for number, name in pairs]
    return ClassFile(entries, None, "given", "a numbered list")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"[,;\t]", line)]


def _is_header(cells: list[str]) -> bool:
    return len(cells) > 1 and len({cell.lower() for cell in cells} & _TABLE_WORDS) > 1


def _of_columns(names: list[str], rows: list[list[str]]) -> ClassFile:
    """Read a table by its heading: a name, and a number or red, green and blue."""
    name = next((names.index(word) for word in _NAME_WORDS if word in names), None)
    number = next((names.index(word) for word in _ID_WORDS if word in names), None)
    color = {_COLOR_WORDS[word]: place for place, word in enumerate(names) if word in _COLOR_WORDS}
    if name is None or (number is None and len(color) != 3) or any(len(row) != len(names) for row in rows):
        raise ValueError(
            f"it is a table ({', '.join(names)}) that is not understood; expected the columns name and id, or name, r, "
            "g and b; or one name a line"
        )
    entries: list[Entry] = []
    for row in rows:
        entry: Entry = {"name": row[name]}
        if len(color) == 3:
            entry = _colored(row[name], [row[color[channel]] for channel in range(3)])
        if number is not None and not re.fullmatch(r"-?\d+", row[number]):
            raise ValueError(
                f"the class '{row[name]}' has the {names[number]} '{row[number]}', expected a number"
            )
        entries.append(entry | ({} if number is None else {"id": int(row[number])}))
    return ClassFile(entries, numbers="none" if number is None else "given", origin="a table")


def _colored(name: str, color: Any) -> Entry:
    return {"name": name, "color": [int(value) for value in color]}
