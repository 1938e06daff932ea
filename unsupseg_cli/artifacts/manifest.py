"""The manifest: what an artifact is, what it was made from, and what it must contain."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from unsupseg_cli.artifacts.canonical import digest_json
from unsupseg_cli.core.errors import UnsupsegError

FORMAT_VERSION = 1
OLDEST_FORMAT = 1
MANIFEST = "manifest.json"


class NewerFormatError(UnsupsegError):
    """A manifest was written by a newer version of the tool."""


class OlderFormatError(UnsupsegError):
    """An artifact in a format that is no longer read; making it again replaces it."""


def _plain_name(text: str) -> str:
    if not text or text[0] == "." or any(char in "/\\" or ord(char) < 32 for char in text):
        raise ValueError(f"expected a plain name, found {text!r}")
    return text


def is_inside(text: str) -> bool:
    """Tell whether a relative path leads nowhere else than into the folder that it is meant from."""
    path = PurePosixPath(text)
    return not (path.is_absolute() or ".." in path.parts or text in ("", "."))


def is_scratch(name: str) -> bool:
    """Tell whether a file of a draft is not published: a folder of its path, or its name, is hidden."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def is_result(name: str) -> bool:
    """Tell whether a file of an artifact counts in its digest: pictures and logs may differ between equal runs."""
    return PurePosixPath(name).suffix not in _NO_RESULTS or name.startswith("ids/")


_NO_RESULTS = {".log", ".jsonl", ".png", ".jpg", ".html"}


def _inside(text: str) -> str:
    if not is_inside(text):
        raise ValueError(f"expected a path inside the artifact, found {text!r}")
    return text


Name = Annotated[str, AfterValidator(_plain_name)]
"""A name of a folder that leads nowhere else: whoever made a workspace may have written anything into it."""
Key = Annotated[str, Field(pattern="^[0-9A-Za-z]+$")]
Inside = Annotated[str, AfterValidator(_inside)]


class Input(BaseModel):
    """One artifact that another one was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str = Field(description="What the input is used as, e.g. 'features'.")
    kind: Name
    id: Name
    key: Key
    digest: str = Field(description="Digest of the input's outputs at the time of use.")


class Output(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int = Field(ge=0)
    sha256: str
    result: bool = Field(description="False for logs and plots, which may differ between equal runs.")


class DataSource(BaseModel):
    """The images an artifact speaks about."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    split: str
    root: str = Field(default="", description="Where the images lay; not part of the key.")
    fingerprint: str = Field(description="SHA-256 over the sorted (relative path, content digest) pairs.")
    count: int = Field(ge=0)
    image_suffix: str = Field(default="", description="Ending of the images' names; others were no images.")
    reading: dict[str, Any] = Field(
        default_factory=dict, description="Bands and range of the images' values, where they were chosen."
    )
    pages: bool = Field(default=False, description="Whether pages of a TIFF were images of their own.")
    windows: dict[str, Any] = Field(
        default_factory=dict,
        description="How large TIFFs were cut into images of their own, where they were.",
    )
    named: list[str] = Field(
        default_factory=list,
        description="Images, folders, patterns and lists that were named one by one; the root is then the first's.",
    )
    step: int | None = Field(
        default=None, description="Every how manieth frame of named videos was an image."
    )
    left_out: list[str] = Field(
        default_factory=list,
        description="Folders below the root that held none of the images, such as labels.",
    )


class Manifest(BaseModel):
    """What an artifact is; stored as ``manifest.json`` in its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    kind: Name
    id: Name
    stage: str
    stage_version: int
    key: Key
    config: dict[str, Any] = Field(description="The result fields: they enter the key.")
    execution: dict[str, Any] = Field(default_factory=dict, description="How the work was done.")
    inputs: list[Input] = Field(default_factory=list)
    data: DataSource | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    started: str = ""
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    outputs: dict[Inside, Output] = Field(default_factory=dict)
    digest: str = ""
    summary: dict[str, Any] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    deterministic: bool = Field(
        default=True,
        description="The same call gives the same bytes again on the same kind of machine, at the same batch size: "
        "another batch size (execution.batch_size) sums in another order, and results agree to rounding.",
    )
    used_labels: bool = False

    @staticmethod
    def digest_of(outputs: dict[str, Output]) -> str:
        """Return the digest of the result files: equal for equal arrays, tables and weights."""
        return digest_json({name: output.sha256 for name, output in outputs.items() if output.result})


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artifact folder.

    Raises:
        UnsupsegError: it is missing, unreadable, or damaged.
        NewerFormatError: it was written by a newer version of the tool.
        OlderFormatError: it was written by a version too old.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnsupsegError(
            f"'{folder}' is no artifact: it has no {MANIFEST}; give a folder or id that "
            "`unsupseg list` shows."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupsegError(
            f"The manifest '{path}' cannot be read ({error}); run its stage again with --force."
        ) from None
    return parse_manifest(raw, str(path))


def parse_manifest(raw: Any, path: str) -> Manifest:
    """Return a manifest from plain values; ``path`` is where they were read.

    Raises:
        UnsupsegError: it is damaged.
        NewerFormatError: it was written by a newer version of the tool.
        OlderFormatError: it was written by a version too old.
    """
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NewerFormatError(
            f"'{path}' has format version {version}, this tool reads up to {FORMAT_VERSION}; update unsupseg "
            "or make the artifact again with this version."
        )
    if isinstance(version, int) and version < OLDEST_FORMAT:
        raise OlderFormatError(
            f"'{path}' has format version {version}, which this tool no longer reads (it reads {OLDEST_FORMAT} to "
            f"{FORMAT_VERSION}); run the stage again with the same options, which replaces it."
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UnsupsegError(
            f"The manifest '{path}' is damaged at '{place}' ({first['msg']}); run its stage again "
            "with --force."
        ) from None
