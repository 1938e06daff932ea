"""Label spaces and label files."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.images import UnreadableImage

VOID = -1
_SPACES = Path(__file__).parent / "spaces"
_SHOWN = 8  # wrong values named in an error


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a labelled set.

    Attributes:
        name: of the space, for example ``camvid11``.
        names: of the classes 0..K-1.
        colors: RGB of each class.
        mapping: raw value in a label file -> class.
        void: raw values that mean "no class".
        kinds: ``thing``, ``stuff`` or an empty text per class.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    mapping: Mapping[int, int]
    void: frozenset[int]
    kinds: tuple[str, ...] = field(default=())

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        """Class of each raw value; -1 void, -2 not allowed."""
        raw = [*self.mapping, *self.void, 0]
        table = np.full(max(raw) + 1, -2, np.int16)
        for value in self.void:
            if value >= 0:
                table[value] = VOID
        for value, target in self.mapping.items():
            table[value] = target
        return table

    def encode(self, raw: NDArray[np.integer[Any]], path: Path) -> NDArray[np.int16]:
        """Return the classes (H, W) int16 of raw values (H, W), VOID = -1.

        Raises:
            UsageError: values that the space does not know; the message names the file and the values.
        """
        if raw.ndim == 3:
            return self._encode_colors(raw, path)
        table = self._table
        inside = (raw >= 0) & (raw < len(table))
        classes: NDArray[np.int16] = table[np.where(inside, raw, 0)]
        wrong = (classes == -2) | (~inside & ~np.isin(raw, list(self.void)))
        if wrong.any():
            values = np.unique(raw[wrong])
            listed = ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")
            allowed = sorted(self.mapping)
            raise UsageError(
                f"The label '{path}' has values that the label space '{self.name}' does not know: {listed}. Allowed "
                f"are {allowed[0]} to {allowed[-1]} and void {sorted(self.void)}; map or void them in the --class-file."
            )
        classes[~inside] = VOID
        return classes

    def _encode_colors(self, raw: NDArray[np.integer[Any]], path: Path) -> NDArray[np.int16]:
        codes = (raw[..., 0].astype(np.int64) << 16) | (raw[..., 1].astype(np.int64) << 8) | raw[..., 2]
        classes = np.full(codes.shape, -2, np.int16)
        for index, (r, g, b) in enumerate(self.colors):
            classes[codes == (r << 16 | g << 8 | b)] = index
        classes[(classes == -2) & (codes == 0)] = VOID  # black is void unless a class has that colour
        if (classes == -2).any():
            wrong = np.unique(codes[classes == -2])[:_SHOWN]
            listed = ", ".join(str((int(c) >> 16, int(c) >> 8 & 255, int(c) & 255)) for c in wrong)
            raise UsageError(
                f"The label '{path}' is an RGB picture with colours that no class of '{self.name}' has: {listed}; give "
                'each class its "color" in the --class-file, or use label images of class numbers.'
            )
        return classes

    @classmethod
    def from_file(cls, path: Path) -> LabelSpace:
        """Read a space from JSON (``{"classes": [...], "void": ...}``) or from text, one name a line.

        A class is a name, or an object with ``name`` and optionally ``id`` or ``ids`` (raw values), ``color``
        and ``kind``. Without ids the raw value is the position.

        Raises:
            UsageError: the file is missing, not valid, or names no class.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"The class file '{path}' cannot be read ({error.strerror}).") from None
        try:
            content = json.loads(text) if path.suffix == ".json" else {"classes": text.split("\n")}
        except ValueError as error:
            raise UsageError(f"The class file '{path}' is not valid JSON: {error}.") from None
        entries = content.get("classes", []) if isinstance(content, dict) else content
        entries = [{"name": e.strip()} if isinstance(e, str) else e for e in entries if e not in ("", "\r")]
        void = content.get("void", [255]) if isinstance(content, dict) else [255]
        try:
            return _build(path.stem, entries, [void] if isinstance(void, int) else list(void))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f'The class file \'{path}\' does not fit ({error}); expected {{"classes": [name or {{"name", "id", '
                '"color"}, ...], "void": [255]}.'
            ) from None


def _build(name: str, entries: list[dict[str, Any]], void: list[int]) -> LabelSpace:
    if not entries:
        raise ValueError("it names no class")
    mapping: dict[int, int] = {}
    for index, entry in enumerate(entries):
        for value in entry.get("ids", [entry.get("id", index)]):
            mapping[int(value)] = index
    colors = tuple(
        tuple(int(v) for v in entry["color"]) if "color" in entry else _default_color(index)
        for index, entry in enumerate(entries)
    )
    return LabelSpace(
        name=name,
        names=tuple(str(entry["name"]) for entry in entries),
        colors=colors,  # type: ignore[arg-type]
        mapping=mapping,
        void=frozenset(int(value) for value in void if int(value) not in mapping),
        kinds=tuple(str(entry.get("kind", "")) for entry in entries),
    )


def _default_color(index: int) -> tuple[int, int, int]:
    """Return a colour by turning the hue in golden angles; saturation and value change every turn."""
    saturation, value = 0.85 - 0.25 * (index % 3), 0.95 - 0.2 * (index // 3 % 3)
    r, g, b = colorsys.hsv_to_rgb((index * 0.61803) % 1, saturation, value)
    return round(255 * r), round(255 * g), round(255 * b)


def named_space(name: str) -> LabelSpace:
    """Return a space that ships with the tool; each is a readable table in ``data/spaces``."""
    content = json.loads((_SPACES / f"{name}.json").read_text(encoding="utf-8"))
    return _build(name, content["classes"], content["void"])


def read_label(path: Path) -> NDArray[np.int32]:
    """Read raw values (H, W) of a label image: gray of 8 or 16 bit, palette index, or colours (H, W, 3).

    Raises:
        UnreadableImage: the file is missing or damaged.
        UsageError: the mode of the image can hold no class numbers.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in {"L", "P", "I", "I;16", "I;16B", "I;16L", "1", "RGB", "RGBA"}:
                raise UsageError(
                    f"The label '{path}' is of mode {image.mode}; expected a PNG of class numbers (gray 8 or 16 bit, "
                    "or palette), or RGB in the classes' colours."
                )
            picture = image.convert("RGB") if image.mode == "RGBA" else image
            return np.asarray(picture).astype(np.int32)
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableImage(f"The label '{path}' cannot be read ({error})") from None


def check_label_size(
    label: Path, label_size: tuple[int, ...], image: Path, image_size: tuple[int, int]
) -> None:
    """Raise UsageError, naming both files and sizes, unless label and image are of one size."""
    if tuple(label_size) != tuple(image_size):
        raise UsageError(
            f"The label '{label}' is {label_size[1]}x{label_size[0]} pixels, its image '{image}' is "
            f"{image_size[1]}x{image_size[0]}; labels must have the size of their image (width x height)."
        )
