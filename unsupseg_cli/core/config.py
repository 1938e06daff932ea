"""The base of every configuration: one source for names, defaults, bounds, help and paper source.

A field is either a *result* field (it changes what is computed and enters the artifact's key) or an
*execution* field (device, workers, batch size, paths: it does not). This module imports no torch.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue


def setting(default: Any = ..., help: str = "", *, source: str = "", **bounds: Any) -> Any:
    """Declare a result field: part of the artifact's key.

    ``source`` names the paper section the value comes from; ``bounds`` are pydantic's (ge, le, ...).
    """
    extra: dict[str, JsonValue] = {"execution": False, "source": source}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


def execution(default: Any = ..., help: str = "", **bounds: Any) -> Any:
    """Declare an execution field: how the work is done, never what comes out."""
    extra: dict[str, JsonValue] = {"execution": True, "source": ""}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


class Config(BaseModel):
    """Base of all configurations: immutable, validated, no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def execution_fields(cls) -> set[str]:
        """Return the names of the fields that do not enter the key."""
        names = set()
        for name, field in cls.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("execution"):
                names.add(name)
        return names

    def result(self) -> dict[str, Any]:
        """Return the result fields as plain JSON values."""
        return self.model_dump(mode="json", exclude=self.execution_fields())
