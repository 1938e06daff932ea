"""The base of every configuration: one source for names, defaults, bounds, help and paper source.

A field is either a *result* field (it changes what is computed and enters the artifact's key) or an
*execution* field (device, workers, batch size, paths: it does not). This module imports no torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, field_validator

from unsupseg_cli.core.address import is_address, is_file_address, parse_address
from unsupseg_cli.core.paths import local_path


def setting(
    default: Any = ...,
    help: str = "",
    *,
    source: str = "",
    length: bool = False,
    file: bool = False,
    **bounds: Any,
) -> Any:
    """Declare a result field: part of the artifact's key.

    ``source`` names the paper section the value comes from; ``length`` says that the field only decides how long
    the work takes, in proportion (steps, epochs); ``file`` that a text which names a file stands for its content;
    ``bounds`` are pydantic's (ge, le, ...).
    """
    extra: dict[str, JsonValue] = {"execution": False, "source": source, "length": length, "file": file}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


def execution(
    default: Any = ...,
    help: str = "",
    *,
    argument: bool = False,
    alone: bool = False,
    short: str = "",
    also: tuple[str, ...] = (),
    **bounds: Any,
) -> Any:
    """Declare an execution field: how the work is done, never what comes out.

    An ``argument`` is given to the command by its place instead of by a name; what may stand ``alone``, either way, in
    a command without argument; ``short`` and ``also`` are further names on the command line.
    """
    extra: dict[str, JsonValue] = {"execution": True, "source": "", "argument": argument, "alone": alone}
    return Field(
        default,
        description=help,
        json_schema_extra={**extra, "also": [*([short] if short else []), *also]},
        **bounds,
    )


_NAMES_OR_PATHS = {"dataset", "model", "backbone", "probe"}
"""Options that take a name, or the path of a file or folder."""
_IMAGES = "images"
_MAY_BE_FAR = {"dataset", "model", _IMAGES}
"""Fields whose images, or artifact, may lie in object storage."""
"""The option that also takes patterns and lists, see `data.inputs`."""


class Config(BaseModel):
    """Base of all configurations: immutable, validated, no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_empty(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse an empty text where files or folders are named: it would be the folder one works in."""
        name = str(info.field_name)
        if name in _NAMES_OR_PATHS or "Path" in str(cls.model_fields[name].annotation):
            several = value if isinstance(value, list | tuple) else (value,)
            if any(isinstance(entry, str) and not entry.strip() for entry in several):
                raise ValueError("it is empty, perhaps a variable of the shell that is not set")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_other_kinds(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number, and a list for one value: a file of settings may hold them.

        A path where a name is expected is that name: Python callers have paths.
        """
        kinds = str(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, Path) and "Path" not in kinds and "str" in kinds:
            return str(value)
        if isinstance(value, list) and not re.search("tuple|list|dict|Any|Json|Mapping|Sequence", kinds):
            raise ValueError("expected one value, found a list")
        several = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(entry, bool) for entry in several) and not re.search("bool|Any|Json", kinds):
            raise ValueError("expected a number or a text, found true or false")
        return value

    @field_validator("*")
    @classmethod
    def _local_paths(cls, value: Any, info: ValidationInfo) -> Any:
        """Expand ``~``, and refuse patterns and addresses, in whatever names files or folders; images may have some."""
        name = str(info.field_name)
        if isinstance(value, Path):
            return Path(_local(value, name))
        if isinstance(value, tuple) and any(isinstance(entry, Path) for entry in value):
            return tuple(Path(_local(entry, name)) if isinstance(entry, Path) else entry for entry in value)
        return _local(value, name) if isinstance(value, str) and name in _NAMES_OR_PATHS else value

    @classmethod
    def execution_fields(cls) -> set[str]:
        """Return the names of the fields that do not enter the key."""
        return cls.marked("execution")

    @classmethod
    def marked(cls, mark: str) -> set[str]:
        """Return the names of the fields that carry a mark: ``execution``, ``length``, ``file`` or ``argument``."""
        return {name for name in cls.model_fields if cls.note(name, mark)}

    @classmethod
    def note(cls, name: str, mark: str) -> Any:
        """Return what a field was declared with: its ``source``, or one of the marks."""
        extra = cls.model_fields[name].json_schema_extra
        return extra.get(mark) if isinstance(extra, dict) else None

    def result(self) -> dict[str, Any]:
        """Return the result fields as plain JSON values."""
        return self.model_dump(mode="json", exclude=self.execution_fields())

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the fields that the other values leave without effect, each with the reason.

        ``stage`` is the configuration of the command where this one holds the options of a method. A value other than
        the default is then refused, so that nothing is asked for in vain and no key holds what is not read.
        """
        return {}

    def ineffective(self, stage: Config | None = None) -> dict[str, str]:
        """Return the fields that are set, to something else than the default, without effect; and the reasons."""
        reasons = self.unread(stage)
        return {
            name: reason
            for name, reason in reasons.items()
            if getattr(self, name) != type(self).model_fields[name].get_default()
        }


def _local(value: str | Path, field: str) -> str:
    """Return what a field names: a path with ``~`` expanded, as `local_path` does, or images in object storage."""
    if field in _MAY_BE_FAR and is_address(value) and not is_file_address(value):
        return str(parse_address(value))
    return local_path(str(value), patterns=field == _IMAGES)
