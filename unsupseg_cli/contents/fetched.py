"""Images from object storage, as a folder of this machine that knows its address."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unsupseg_cli.artifacts.cache import Cache
from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.core.address import Address, is_address, is_file_address, parse_address
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.data.datasets import Dataset

Fetched = tuple[str, Path] | None
"""An address, and the folder that it was fetched into."""


def brought(name: str, context: Context | None) -> tuple[str, Fetched]:
    """Return what opens a data set on this machine, and where it was fetched from, of an address."""
    if not is_address(name) or is_file_address(name):
        return name, None
    from unsupseg_cli.storage.images import bring_images

    cache, reporter = (context.cache, context.reporter) if context else (Cache.of_environment(), Silent())
    folder = bring_images(name, cache, reporter)
    return f"{folder}/", (str(parse_address(name)), folder)


def with_origin(place: Fetched, dataset: Dataset) -> Dataset:
    """Return a data set that knows the address it was fetched from."""
    if place is None:
        return dataset
    return replace(dataset, origin=address_of(dataset.root, place))


def address_of(folder: Path, place: Fetched) -> str:
    """Return the address that a folder was fetched from; the folder where it was not."""
    if place is None or not folder.is_relative_to(place[1]):
        return str(folder.absolute())
    inside = folder.relative_to(place[1]).as_posix()
    return place[0] if inside == "." else f"{place[0]}/{inside}"


def folder_of(folder: Path, place: Fetched) -> Path:
    """Return the folder that an address in a manifest was fetched into."""
    if place is None or not is_address(folder):
        return folder
    inside = parse_address(place[0]).within(str(folder))
    return folder if inside is None else place[1] / inside


def parse_images(path: Path) -> Address:
    """Return the address that a path was given as; raises UsageError where it is malformed."""
    try:
        return parse_address(path)
    except ValueError as error:
        raise UsageError(f"The images: {error}.") from None
