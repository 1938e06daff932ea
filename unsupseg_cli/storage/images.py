"""Images in object storage: listed, and fetched into the cache, where they are read as those of a folder."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from unsupseg_cli.artifacts.cache import Cache
from unsupseg_cli.artifacts.files import exclusive, require_space, write_json
from unsupseg_cli.artifacts.manifest import is_inside
from unsupseg_cli.core.address import Address, parse_address
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.data.images import IMAGE_SUFFIXES
from unsupseg_cli.data.video import is_video
from unsupseg_cli.storage.objects import Listed, Objects, open_store
from unsupseg_cli.storage.transfer import TOGETHER, size_of

_IMAGES = "images"  # the folder of the cache for what is no artifact
_STATE = ".objects.json"
_BESIDE = ("classes.json", "classes.txt")  # what a folder of images and labels says of its classes


def bring_images(text: str | Path, cache: Cache, reporter: Reporter) -> Path:
    """Return the folder, or the file, in the cache that holds what lies at an address.

    Objects that were fetched before and have the same version are not fetched again, and those that are gone are gone
    here too.

    Raises:
        UsageError: the address is malformed, or no image lies there.
        UnsupsegError: the images do not fit into the cache, or an object changes while it is fetched.
    """
    try:
        address = parse_address(text)
    except ValueError as error:
        raise UsageError(f"The images: {error}.") from None
    objects = Objects(address, open_store(address), reporter.info)
    listed, name = objects.list(), ""
    if not listed and address.prefix:  # one image
        parent, _, name = address.prefix.rpartition("/")
        above = Address(address.scheme, address.bucket, parent)
        objects = Objects(above, open_store(above), reporter.info)
        found = objects.head(name)
        listed = [found] if found else []
    wanted = [item for item in listed if _is_wanted(item.path)]
    if not wanted:
        what = f"none of {len(listed):,} objects there is an image" if listed else "nothing lies there"
        raise UsageError(
            f"No image lies at '{address}': {what}; give the address of images, or of one image."
        )
    if len(wanted) < len(listed):
        reporter.info(
            f"{len(listed) - len(wanted):,} objects below '{address}' are no images and are not fetched"
        )
    digest = hashlib.sha256(str(address).encode()).hexdigest()[:12]
    folder = cache.folder(f"{_IMAGES}/{digest}") / address.name
    cache.pin(folder)
    with exclusive(folder.with_name("fetch.lock"), f"'{address}' in the cache", 3600, reporter.info):
        _fetch(folder, wanted, objects, cache, reporter)
    return folder / name if name else folder


def _fetch(folder: Path, wanted: list[Listed], objects: Objects, cache: Cache, reporter: Reporter) -> None:
    """Fetch those objects into a folder that it lacks, and remove the files of others."""
    known = _known(folder)
    lacking = [
        item
        for item in wanted
        if known.get(item.path) != item.etag or size_of(folder / item.path) != item.size
    ]
    paths = {folder / item.path for item in wanted}
    for path in folder.rglob("*"):
        if path.is_file() and path not in paths and not path.name.startswith("."):
            path.unlink()
    if not lacking:
        return
    subject, size = f"'{objects.address}'", sum(item.size for item in lacking)
    cache.make_room(folder, sum(item.size for item in wanted), subject)
    require_space(folder, size, subject)

    def fetch(item: Listed) -> None:
        if not objects.fetch(item.path, folder / item.path, item.size):
            raise UnsupsegError(
                f"'{item.path}' in '{objects.address}' was changed or removed while it was fetched: call again when "
                "the images are at rest."
            )

    with ThreadPoolExecutor(TOGETHER) as threads:
        for _ in reporter.track(threads.map(fetch, lacking), "images fetched", total=len(lacking)):
            pass
    write_json(folder / _STATE, {item.path: item.etag for item in wanted})


def _is_wanted(path: str) -> bool:
    name = PurePosixPath(path)
    hidden = any(part.startswith(".") for part in name.parts)
    image = name.suffix.lower() in IMAGE_SUFFIXES or is_video(Path(path)) or name.name in _BESIDE
    return image and not hidden and is_inside(path)


def _known(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        value = json.loads((folder / _STATE).read_bytes())
        return value if isinstance(value, dict) else {}
    return {}
