"""A recipe as text that is complete by itself. This module imports no torch."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

from unsupseg_cli.pipeline.recipe_file import Published, RecipeFile

_HEADER = re.compile(r"\[+\s*([^\]]+?)\s*\]+")
_ENTRY = re.compile(r"([\w.-]+)\s*=\s*(.+)")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

Address = tuple[str, ...]
"""Where something stands in a recipe, such as ``("train", "set", "steps")``: a stage goes by its id."""


def recipe_text(recipe: RecipeFile) -> str:
    """Return a recipe as TOML to be saved, changed and run: its file, or one with the variant filled in.

    Comments on lines of their own are kept, and those behind a value as long as the value holds.
    """
    text = recipe.path.read_text(encoding="utf-8-sig")
    if not recipe.variant:
        return text
    comments, entries = _comments_and_entries(recipe, text)
    blocks = []
    for header, address, values in _tables(recipe):
        lines = [*comments.get(address, []), *header]
        for key, value in values.items():
            inside = (*address, key)
            written = entries.get(inside, "")
            lines += comments.get(inside, [])
            lines.append(written if _means(written, {key: value}) else f"{_key(key)} = {_value(value)}")
        if values:
            blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _tables(recipe: RecipeFile) -> list[tuple[list[str], Address, dict[str, Any]]]:
    """Return the tables of a recipe in the order of the documentation: header, address, values."""
    contents = recipe.tables
    published = contents.get("published", {})
    tables: list[tuple[list[str], Address, dict[str, Any]]] = [
        ([], (), {key: value for key, value in contents.items() if isinstance(value, str)}),
        (["[data]"], ("data",), contents.get("data", {})),
        (
            ["[published]"],
            ("published",),
            {key: published[key] for key in Published.model_fields if key in published},
        ),
    ]
    tables.append((["[tune]"], ("tune",), dict(recipe.tune)))
    for stage, table in zip(recipe.stages, contents["stage"], strict=True):
        options = {key: value for key, value in table.items() if key != "set"}
        tables.append((["[[stage]]"], (stage.id,), options))
        tables.append((["[stage.set]"], (stage.id, "set"), table.get("set", {})))
    return tables


def _comments_and_entries(
    recipe: RecipeFile, text: str
) -> tuple[dict[Address, list[str]], dict[Address, str]]:
    """Return the comments and the entries of a file by what they stand above and what they set.

    Entries of the recipe's variant count as those of the stages that they change, its own comments as the file's.
    """
    comments: dict[Address, list[str]] = {}
    entries: dict[Address, str] = {}
    stages = (stage.id for stage in recipe.stages)
    stage, table = "", ()
    above: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("#"):
            above.append(line)
            continue
        header, entry = _HEADER.match(line), _ENTRY.match(line)
        if header:
            name = header[1].replace('"', "")
            stage = next(stages, "") if name == "stage" else stage
            special = {"stage": (stage,), "stage.set": (stage, "set"), f"variant.{recipe.variant}": ()}
            table = address = special.get(name, (name,))
        elif entry:
            address = (*table, *entry[1].split("."))
        else:
            continue
        if above:
            place = address if entries else ()
            comments[place] = [*comments[place], "#", *above] if place in comments else above
            above = []
        if entry:
            entries[address] = f"{address[-1]} = {entry[2]}"
    return comments, entries


def _means(line: str, entry: dict[str, Any]) -> bool:
    try:
        return tomllib.loads(line) == entry
    except tomllib.TOMLDecodeError:
        return False


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key)


def _value(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {_value(entry)}' for key, entry in value.items())} }}"
    return str(value)
