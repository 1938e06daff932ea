"""Addresses of places in object storage: ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix``."""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEMES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
_ADDRESS = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(.*)", re.DOTALL
)  # pathlib keeps one slash of the two
_BARE = {f"{scheme}:" for scheme in SCHEMES}  # what pathlib leaves of an address without a bucket
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_PLAIN = re.compile(r"[^\x00-\x20\\?#*\x7f]+")


@dataclass(frozen=True)
class Address:
    """A place in a bucket; ``prefix`` has no slash at either end, and is empty for the whole bucket."""

    scheme: str
    bucket: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def noun(self) -> str:
        """What its service calls a bucket."""
        return _noun(self.scheme)

    @property
    def name(self) -> str:
        """The last part, as a folder would be called."""
        return self.prefix.rpartition("/")[2] or self.bucket

    def within(self, text: str) -> str | None:
        """Return what follows this address in another one, without the slash; None where it is elsewhere."""
        other = parse_address(text)
        if (other.scheme, other.bucket) != (self.scheme, self.bucket):
            return None
        if not self.prefix:
            return other.prefix
        inside = other.prefix == self.prefix or other.prefix.startswith(f"{self.prefix}/")
        return other.prefix[len(self.prefix) + 1 :] if inside else None


def _noun(scheme: str) -> str:
    return "container" if scheme == "az" else "bucket"


def as_written(text: object) -> str:
    """Return an address with the two slashes of which pathlib keeps one, and anything else as it is."""
    match = _ADDRESS.fullmatch(str(text))
    if match is None:
        return f"{text}//" if str(text).lower() in _BARE else str(text)
    root = "/" if is_file_address(text) else ""  # what follows is a path from there
    return f"{match[1]}://{root}{match[2].lstrip('/')}"


def is_address(text: object) -> bool:
    """Tell whether a text is written as an address, of whatever scheme."""
    return _ADDRESS.match(str(text)) is not None or str(text).lower() in _BARE


def is_file_address(text: object) -> bool:
    """Tell whether a text is an address of a file on this machine, for which a path is to be written."""
    return str(text).lower().startswith("file:")


def parse_address(text: object) -> Address:
    """Return the place that an address names.

    Raises:
        ValueError: the scheme is unknown, or the bucket or the prefix is malformed; the text says what was expected.
    """
    text = as_written(text)
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is no address such as s3://bucket/prefix")
    scheme, (bucket, _, prefix) = match[1].lower(), match[2].partition("/")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}:// ({service})" for name, service in SCHEMES.items())
        raise ValueError(f"'{text}' has the unknown scheme '{scheme}'; expected a folder, or {known}")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket):
        noun = _noun(scheme)
        raise ValueError(
            f"'{text}' names no {noun}: expected {scheme}://{noun.upper()}/PREFIX with a {noun} of 3 to 63 letters, "
            "digits, '.', '-' and '_'"
        )
    parts = prefix.split("/") if prefix else []
    if any(part in ("", ".", "..") or not _PLAIN.fullmatch(part) for part in parts):
        raise ValueError(
            f"'{text}' has a malformed prefix: expected names with '/' between them, without blanks, '?', '#', '*', "
            "'\\', '.' and '..'"
        )
    return Address(scheme, bucket, prefix)
