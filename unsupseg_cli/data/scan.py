"""Walking a folder: which of its files are images of a collection, and what is left out, with the reason."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unsupseg_cli.core.words import are, counted
from unsupseg_cli.data.images import IMAGE_SUFFIXES, PLUGINS

_SHOWN = 5  # names, and kinds of files, in one remark


@dataclass
class Scan:
    """What a walk found beside the images it yields.

    Attributes:
        others: files that are no images, by suffix.
        broken: names that are no files (links that lead nowhere, pipes) and folders that cannot be opened.
        left_out: folders that were not entered, with the reason.
    """

    others: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def remarks(self, images: int) -> list[str]:
        """Return what the user is told of a collection of so many images."""
        kinds = [f"{suffix} {count}" for suffix, count in self.others.most_common()]
        others = (
            f", {counted(sum(self.others.values()), 'other file')} ({_shortened(kinds)})" if kinds else ""
        )
        lines = [f"{counted(images, 'image')}{others}", *(f"left out: {reason}" for reason in self.left_out)]
        for suffix in sorted(set(self.others) & set(PLUGINS)):
            lines.append(f"{suffix} files can be read after `pip install {PLUGINS[suffix]}`")
        return lines

    def problem(self) -> str:
        """Return a sentence on what is broken, empty where nothing is."""
        if not self.broken:
            return ""
        names = f"{counted(len(self.broken), 'name')} {are(len(self.broken))}"
        return (
            f"{names} no readable file or folder (a link that leads nowhere, a pipe, no permission) and left out: "
            f"{_shortened(self.broken)}"
        )


def scan_images(
    root: Path, left_out: Sequence[Path] = (), image_suffix: str = "", scan: Scan | None = None
) -> Iterator[Path]:
    """Yield the images below a folder, sorted, without hidden files.

    Links to a folder above are not followed. Not entered are the folders ``left_out``, artifacts of this tool, and what
    `predict --out` wrote; the root itself is taken whatever it is.

    Args:
        root: the folder.
        left_out: folders below it that hold no images of the collection, such as labels.
        image_suffix: take only images whose name ends so before the dot.
        scan: is told what was found beside them.
    """
    scan = scan or Scan()
    seen: set[tuple[int, int]] = set()
    refused = {path.resolve() for path in left_out}

    def unopened(error: OSError) -> None:
        scan.broken.append(os.path.relpath(error.filename, root))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=unopened):
        here = Path(folder)
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if here != root and (reason := _reason(here, files, refused)):
            scan.left_out.append(f"'{here.relative_to(root)}' ({reason})")
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            path = here / name
            if path.suffix.lower() not in IMAGE_SUFFIXES or not path.stem.endswith(image_suffix):
                scan.others[path.suffix.lower() or "no suffix"] += 1
            elif path.is_file():
                yield path
            else:
                scan.broken.append(str(path.relative_to(root)))


def _reason(folder: Path, files: Sequence[str], left_out: set[Path]) -> str:
    """Return why a folder is not entered, empty if it is."""
    if folder.resolve() in left_out:
        return "labels or output of this call"
    if "classes.json" in files and (folder / "ids").is_dir():
        return "written by `predict --out`"
    return "an artifact of this tool" if "manifest.json" in files and _is_artifact(folder) else ""


def _is_artifact(folder: Path) -> bool:
    file = folder / "manifest.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"stage", "key", "digest", "outputs"} <= content.keys()


def _shortened(parts: Sequence[str]) -> str:
    return ", ".join(parts[:_SHOWN]) + (", ..." if len(parts) > _SHOWN else "")
