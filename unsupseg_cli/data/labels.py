"""Label spaces and label files."""

from __future__ import annotations

import colorsys
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.core.bounds import LARGEST_LABEL, MOST_CLASSES
from unsupseg_cli.core.errors import UsageError, reason_of
from unsupseg_cli.core.labels import VOID, as_ranges, shortened
from unsupseg_cli.core.names import has_controls, visible
from unsupseg_cli.data.class_files import ClassFile, Numbers, read_class_file
from unsupseg_cli.data.images import MATLAB_LABEL, open_image, orientation_of, read_matlab, upright
from unsupseg_cli.data.tiff import SUFFIXES as TIFF_SUFFIXES
from unsupseg_cli.data.tiff import pages_of

_UNKNOWN = -2  # a raw value that is neither class nor void
_SPACES = Path(__file__).parent / "spaces"
_VOID_COLORS = (0, 0xE0E0C0)  # black, and the border around VOC's objects
_LOSSY = {"JPEG", "MPO", "WEBP", "AVIF", "HEIF"}  # formats that (may) change pixel values
_NUMBERS = {"L", "P", "1", "I", "I;16", "I;16B", "I;16L"}  # Pillow modes whose values are class numbers


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
        by_color: whether every colour was given, so that RGB labels can be read by colour.
        hint: what unknown values usually mean in this set.
        rgb: for RGB labels that hold a number instead, what red, green and blue count in it.
        numbers: where the raw values of the classes come from.
        void_given: whether the void values were stated; else 255 is void unless it is a class.
        palette: whether label images with a palette are read by their numbers or by their colours.
        origin: the tool whose class file it is, empty for this tool's own.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    mapping: Mapping[int, int]
    void: frozenset[int]
    kinds: tuple[str, ...] = field(default=())
    by_color: bool = False
    rgb: tuple[int, int, int] | None = None
    hint: str = ""
    numbers: Numbers = "given"
    void_given: bool = True
    palette: Literal["numbers", "colors"] = "numbers"
    origin: str = ""

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        """Class of each raw value from 0, at least of all bytes; VOID or _UNKNOWN where it has none."""
        raw = [*self.mapping, *self.void, 255]
        table = np.full(max(raw) + 1, _UNKNOWN, np.int16)
        for value in self.void:
            if value >= 0:
                table[value] = VOID
        for value, target in self.mapping.items():
            table[value] = target
        return table

    @property
    def by_kind(self) -> dict[str, list[int]]:
        """Classes of each kind, ``thing`` and ``stuff`` say; empty unless there are at least two kinds."""
        kinds = sorted(set(self.kinds) - {""})
        if len(kinds) < 2:
            return {}
        return {kind: [index for index, own in enumerate(self.kinds) if own == kind] for kind in kinds}

    def encode(self, raw: NDArray[np.integer[Any]], path: Path) -> NDArray[np.int16]:
        """Return the classes (H, W) int16 of raw values (H, W) or colours (H, W, 3), VOID = -1.

        Raises:
            UsageError: values that the space does not know; the message names the file and the values.
        """
        if raw.ndim == 3 and self.rgb is not None:
            raw = (raw.astype(np.int64) * np.array(self.rgb)).sum(-1)
        if raw.ndim == 3:
            return self._encode_colors(raw, path)
        if self.numbers == "none":
            raise UsageError(
                f"The label '{path}' holds numbers, but the class file '{self.name}' ({self.origin}) gives colours only"
                ': give label images in these colours, or a JSON --class-file with the "id" of every class.'
            )
        classes = self._classes(raw)
        if (classes == _UNKNOWN).any():
            wrong, present = np.unique(raw[classes == _UNKNOWN]), np.unique(raw)
            raise UsageError(
                f"The label '{path}' has values that the label space '{self.name}' does not know: {as_ranges(wrong)}. "
                f"Classes are {as_ranges(sorted(self.mapping))}, void is {as_ranges(sorted(self.void))}."
                f"{_hint(present.tolist(), wrong.tolist(), self)}"
            )
        return classes

    def _classes(self, raw: NDArray[np.integer[Any]]) -> NDArray[np.int16]:
        """Return the class of raw values (H, W), VOID or _UNKNOWN where they have none."""
        table = self._table
        if raw.dtype == np.uint8:
            return np.take(table, raw)
        inside = (raw >= 0) & (raw < len(table))
        classes: NDArray[np.int16] = table[np.where(inside, raw, 0)]
        classes[~inside] = _UNKNOWN
        classes[~inside & np.isin(raw, list(self.void))] = VOID  # negative void values
        return classes

    def _encode_colors(self, raw: NDArray[np.integer[Any]], path: Path) -> NDArray[np.int16]:
        if not self.by_color:
            gray = bool((raw == raw[..., :1]).all())
            reason = (
                "its three channels are equal: save one of them"
                if gray
                else "save one channel of class numbers"
            )
            raise UsageError(
                f"The label '{path}' is an RGB picture, but the label space '{self.name}' has no colours for it; "
                f'{reason}, or give every class its "color" in a JSON --class-file.'
            )
        colors = [_color_codes(np.array(color)).item() for color in self.colors]
        repeated = next((i for i, color in enumerate(colors) if color in colors[:i]), None)
        if repeated is not None:
            raise UsageError(
                f"The label '{path}' is an RGB picture, but '{self.names[colors.index(colors[repeated])]}' and "
                f"'{self.names[repeated]}' have the same colour {self.colors[repeated]} in '{self.name}'."
            )
        codes = _color_codes(raw)
        classes = self.of_colors(raw)
        if (classes == _UNKNOWN).any():
            wrong = np.unique(codes[classes == _UNKNOWN])
            shown = shortened((int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in wrong)
            raise UsageError(
                f"The label '{path}' is an RGB picture with colours that no class of '{self.name}' has: {shown}. Black "
                "is void; correct the colours in the --class-file, or use label images of class numbers."
            )
        return classes

    def of_colors(self, colors: NDArray[np.integer[Any]]) -> NDArray[np.int16]:
        """Return the classes of colours (..., 3), -2 where no class has one; black and VOC's border are void else."""
        codes = _color_codes(colors)
        classes = np.full(codes.shape, _UNKNOWN, np.int16)
        for index, color in enumerate(self.colors):
            classes[codes == _color_codes(np.array(color)).item()] = index
        classes[(classes == _UNKNOWN) & np.isin(codes, _VOID_COLORS)] = VOID
        return classes

    def of_number(self, value: int) -> int:
        """Return the class of a raw value, VOID, or -2 where it is neither."""
        return VOID if value in self.void else self.mapping.get(value, _UNKNOWN)

    @classmethod
    def from_file(cls, path: Path) -> LabelSpace:
        """Read a space from JSON (``{"classes": [...], "void": ...}``) or from text, one name a line.

        A class is a name, or an object with ``name`` and optionally ``id`` or ``ids`` (raw values), ``color``
        and ``kind``. Without ids the raw value is the position. ``void`` is a raw value or a list, default 255. Class
        files of annotation tools are read too (`read_class_file`).

        Raises:
            UsageError: the file is missing, not valid, or names no class, or a name or raw value occurs twice.
        """
        try:
            file = read_class_file(path)
            return _parse_space(path.stem, file)
        except OSError as error:
            raise UsageError(f"The class file '{path}' cannot be read ({reason_of(error)}).") from None
        except UnicodeDecodeError:
            raise UsageError(f"The class file '{path}' is not text in UTF-8; save it so.") from None
        except json.JSONDecodeError as error:
            raise UsageError(f"The class file '{path}' is not valid JSON: {error}.") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UsageError(
                f'The class file \'{path}\' does not fit ({reason}); expected {{"classes": [name or {{"name", "id", '
                '"color"}, ...], "void": [255]}, or a text file with one name a line.'
            ) from None


def _class_name(name: Any) -> str:
    """Return a class name of a file, of which some are numbers."""
    if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
        raise ValueError(f"a class has the name {json.dumps(name)}, expected a word")
    return str(name)


def _parse_space(name: str, file: ClassFile) -> LabelSpace:
    entries, void = file.entries, file.void
    if not entries:
        raise ValueError("it names no class")
    if len(entries) > MOST_CLASSES:
        raise ValueError(f"it names {len(entries):,} classes, expected at most {MOST_CLASSES:,}")
    names = tuple(_class_name(entry["name"]) for entry in entries)
    for index, class_name in enumerate(names):
        if class_name in names[:index]:
            raise ValueError(f"the name '{class_name}' occurs twice")
        if has_controls(class_name):
            raise ValueError(f"the name '{visible(class_name)}' has characters that a terminal would obey")
    mapping: dict[int, int] = {}
    for index, entry in enumerate(entries if file.numbers != "none" else ()):
        ids = entry.get("ids", [entry.get("id", index)])
        if not isinstance(ids, list):
            raise ValueError(
                f"the class '{names[index]}' has the ids {json.dumps(ids)}, expected a list of numbers"
            )
        for value in ids:
            number = _raw_value(value, names[index])
            if number in mapping:
                raise ValueError(f"'{names[mapping[number]]}' and '{names[index]}' have the same id {number}")
            mapping[number] = index
    told = [255] if void is None else void if isinstance(void, list) else [void]
    for value in told:
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) > LARGEST_LABEL:
            raise ValueError(
                f"the void value is {json.dumps(value)}, expected whole numbers up to {LARGEST_LABEL}, or -1 and below"
            )
    void_values = set(told) - (set(mapping) if void is None else set())
    if clashes := sorted(void_values & set(mapping)):
        value = clashes[0]
        raise ValueError(f"the value {value} is void and the class '{names[mapping[value]]}' at once")
    return LabelSpace(
        name=name,
        names=names,
        colors=tuple(
            _color(entry["color"], entry["name"]) if "color" in entry else _default_color(index)
            for index, entry in enumerate(entries)
        ),
        mapping=mapping,
        void=frozenset(int(value) for value in void_values),
        kinds=tuple(str(entry.get("kind", "")) for entry in entries),
        by_color=all("color" in entry for entry in entries),
        numbers=file.numbers,
        void_given=file.void is not None,
        palette="colors" if file.numbers == "none" else "numbers",
        origin=file.origin,
    )


def _raw_value(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_LABEL:
        raise ValueError(f"the id of '{name}' is {value!r}, expected a whole number from 0 to 65535")
    return value


def _color(value: Any, name: str) -> tuple[int, int, int]:
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        value = list(bytes.fromhex(value[1:]))
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(v, int) and 0 <= v <= 255 for v in value)
    ):
        raise ValueError(
            f"the color of '{name}' is {json.dumps(value)}, expected three numbers from 0 to 255 or #rrggbb"
        )
    return value[0], value[1], value[2]


def _color_codes(colors: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    wide = colors.astype(np.int64)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _hint(present: list[int], wrong: list[int], space: LabelSpace) -> str:
    """Return what usually lies behind such values."""
    if space.hint:
        return f" {space.hint}"
    count, known = len(space.names), set(space.mapping)
    if wrong == [255]:
        return ' If 255 means "no class", add it to "void" in the --class-file.'
    if max(present) > 255 and max(known) <= 255:
        return " Values above 255 look like instance ids; use the label images of class ids."
    classes = [value for value in present if value not in space.void]
    if known == set(range(count)) and wrong == [count] and 0 not in present:
        return ' The values seem to count from 1; give each class its "id" in the --class-file.'
    if known == set(range(count)):
        return (
            ' The file may hold raw ids instead of train ids; give each class its "id" in the --class-file.'
        )
    if all(0 <= value < count for value in classes):
        return " The file seems to hold train ids (positions in the class list) instead of ids."
    return ' Map them to classes with "ids", or add them to "void", in a --class-file.'


def _default_color(index: int) -> tuple[int, int, int]:
    """Return a colour by turning the hue in golden angles; saturation and value change every turn."""
    saturation, value = 0.85 - 0.25 * (index % 3), 0.95 - 0.2 * (index // 3 % 3)
    r, g, b = colorsys.hsv_to_rgb((index * 0.61803) % 1, saturation, value)
    return round(255 * r), round(255 * g), round(255 * b)


def named_space(name: str) -> LabelSpace:
    """Return a space that ships with the tool; each is a readable table in ``data/spaces``."""
    content = json.loads((_SPACES / f"{name}.json").read_text(encoding="utf-8"))
    space = _parse_space(name, ClassFile(content["classes"], content["void"], "given"))
    rgb = tuple(content["rgb"]) if "rgb" in content else None
    return replace(space, rgb=rgb, hint=content.get("hint", ""))


def read_label(path: Path, palette: Literal["numbers", "colors"] = "numbers") -> NDArray[np.int32]:
    """Read raw values (H, W) of a label image: gray of 8 or 16 bit, palette index, or colours (H, W, 3).

    The label is turned by its own EXIF orientation, as an image is: both are compared upright.

    Raises:
        UnreadableImage: the file is missing or damaged.
        UsageError: the file is of a lossy format, its mode can hold no class numbers, or it has several pages.
    """
    if path.suffix == ".mat":
        return read_matlab(path, MATLAB_LABEL).astype(np.int32)
    if path.suffix.lower() in TIFF_SUFFIXES and (pages := pages_of(path)[0]) > 1:
        raise UsageError(f"The label '{path}' has {pages} pages; save the one that belongs to its image.")
    with open_image(path) as image:
        if image.format in _LOSSY:
            raise UsageError(
                f"The label '{path}' is a {image.format} file, whose compression changes class numbers; save labels "
                "as PNG."
            )
        if image.mode not in {*_NUMBERS, "RGB", "RGBA"}:
            raise UsageError(
                f"The label '{path}' is of mode {image.mode}; expected a PNG of class numbers (gray 8 or 16 bit, or "
                "palette), or RGB in the classes' colours."
            )
        picture = upright(image)
        in_color = picture.mode == "RGBA" or (picture.mode == "P" and palette == "colors")
        return np.asarray(picture.convert("RGB") if in_color else picture).astype(np.int32)


def check_label_size(
    label: Path, label_size: tuple[int, ...], image: Path, image_size: tuple[int, int]
) -> None:
    """Raise UsageError, naming both files and sizes, unless label and image are of one size."""
    if tuple(label_size) == tuple(image_size):
        return
    turn = orientation_of(image) if tuple(label_size) == tuple(image_size)[::-1] else 1
    hint = (
        f" It fits the image's pixels as they are stored, before the turn of its EXIF orientation {turn}: turn the "
        "label likewise, or give it the same EXIF orientation."
        if turn != 1
        else ""
    )
    raise UsageError(
        f"The label '{label}' is {label_size[1]}x{label_size[0]} pixels, its image '{image}' is "
        f"{image_size[1]}x{image_size[0]}; labels must have the size of their image (width x height).{hint}"
    )
