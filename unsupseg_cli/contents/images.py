"""What every stage gets: the workspace, a reporter, and the images behind a configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from unsupseg_cli.artifacts.canonical import digest_json
from unsupseg_cli.artifacts.files import write_json
from unsupseg_cli.artifacts.manifest import DataSource
from unsupseg_cli.artifacts.workspace import Artifact, Workspace
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Reporter, Silent
from unsupseg_cli.data.datasets import Dataset, dataset_names, open_dataset
from unsupseg_cli.data.images import content_digest
from unsupseg_cli.data.items import Item
from unsupseg_cli.stages.config import DataConfig

DEFAULT_WORKSPACE = Path("unsupseg-workspace")
_ROOTS = "roots.json"
_DIGESTS = "digests.json"
_WEIGHTS = "weights.json"
REMEMBERED = (_ROOTS, _DIGESTS, _WEIGHTS)


@dataclass
class Context:
    """Where a stage works and whom it tells.

    ``read_only`` writes nothing there, not even what is remembered; of a data set only ``most_images`` are taken,
    evenly spread.
    """

    workspace: Workspace = field(default_factory=lambda: Workspace(DEFAULT_WORKSPACE))
    reporter: Reporter = field(default_factory=Silent)
    force: bool = False
    read_only: bool = False
    most_images: int | None = None

    def say(self, artifact: Artifact, reused: bool) -> Artifact:
        """Tell that an artifact was written or reused, and return it."""
        m = artifact.manifest
        how = "reused" if reused else f"written in {m.seconds:.1f} s"
        self.reporter.info(f"{m.kind} '{m.id}' {how}")
        if m.used_labels:
            self.reporter.warn(f"'{m.id}' used labels: it is a diagnosis, not an unsupervised result")
        for warning in m.warnings:
            self.reporter.warn(warning)
        return artifact

    def take(self, kind: str, reference: str | None, split: str | None = None) -> Artifact:
        """Return a named artifact, or the current one, and say which was taken."""
        if reference is not None:
            return self.workspace.get(reference, kind)
        artifact = self.workspace.current(kind, split)
        self.reporter.info(f"taking {kind} '{artifact.id}' (the last one)")
        return artifact


def open_data(config: DataConfig, context: Context, default_split: str | None = None) -> Dataset:
    """Open the data set of a configuration, remembering where a named one lies.

    Raises:
        UsageError: no data set was named anywhere, or it cannot be found.
    """
    if config.dataset is None:
        raise UsageError(
            "No images were named: give --dataset with a folder of images or a name "
            f'({", ".join(dataset_names())}), or write `dataset = "..."` into an unsupseg.toml.'
        )
    roots_file = context.workspace.root / _ROOTS
    roots = _read_json(roots_file)
    root = config.root or (Path(str(roots[config.dataset])) if config.dataset in roots else None)
    given: dict[str, Any] = {"root": root, "labels": config.labels, "class_file": config.class_file}
    try:
        dataset = open_dataset(config.dataset, split=config.split or default_split, **given)
    except UsageError:
        if config.split is not None or default_split is None:
            raise
        dataset = open_dataset(config.dataset, **given)  # a folder need not have the usual split
    if config.root is not None and config.dataset in dataset_names():
        roots[config.dataset] = str(config.root.resolve())
        _write_cache(roots_file, roots, context)
    count = len(dataset.items)
    if context.most_images is not None and context.most_images < count:
        chosen = tuple(dataset.items[i * count // context.most_images] for i in range(context.most_images))
        dataset = replace(dataset, items=chosen)
    return dataset


def same_images(data: DataSource) -> dict[str, Any]:
    """Return the options that name the data set of an artifact again."""
    known = data.dataset in dataset_names()
    return {"dataset": data.dataset if known else f"{data.root}/", "root": Path(data.root) if known else None}


def describe_images(dataset: Dataset, context: Context) -> DataSource:
    """Return name, split, count and content fingerprint of a data set's images."""
    return DataSource(
        dataset=dataset.name,
        split=dataset.split,
        root=str(dataset.root.absolute()),  # found again from any folder
        fingerprint=_fingerprint(((item.key, item.image) for item in dataset.items), context),
        count=len(dataset.items),
    )


def label_fingerprint(items: Iterable[Item], context: Context) -> str:
    """Return the content fingerprint of the label files; only evaluation and diagnosis call this."""
    return _fingerprint(((item.key, item.label) for item in items if item.label is not None), context)


def remember_weights(backbone: str, file: Path, digest: str, context: Context) -> None:
    """Remember the digest of the weights in a file, so that a dry run need not load them."""
    path = context.workspace.root / _WEIGHTS
    known, entry = _read_json(path), [*_stamp(file), digest]
    name = f"{backbone} {file.resolve()}"
    if known.get(name) != entry:
        _write_cache(path, {**known, name: entry}, context)


def remembered_weights(backbone: str, file: Path, context: Context) -> str | None:
    """Return the digest that the weights in a file had, unless the file changed since or was never used."""
    entry = _read_json(context.workspace.root / _WEIGHTS).get(f"{backbone} {file.resolve()}")
    return str(entry[2]) if entry and file.exists() and entry[:2] == _stamp(file) else None


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def open_paths(paths: Sequence[Path]) -> Dataset:
    """Return images and folders named one by one as a data set without labels.

    Of several folders, each one's name begins the keys of its images.
    """
    items: dict[str, Item] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"'{path}' does not exist; give images or folders of images.")
        found = (
            open_dataset(f"{path}/", split="all").items if path.is_dir() else (Item(path.name, path, None),)
        )
        for item in found:
            if path.is_dir() and len(paths) > 1:
                item = replace(item, key=f"{path.resolve().name}/{item.key}")
            if item.key in items:
                raise UsageError(
                    f"'{items[item.key].image}' and '{item.image}' have the same relative name '{item.key}'; predict "
                    "them in two calls."
                )
            items[item.key] = item
    root = paths[0] if paths[0].is_dir() else paths[0].parent
    return Dataset(name="images", root=root, split="all", items=tuple(items.values()), space=None)


def _fingerprint(files: Iterable[tuple[str, Path]], context: Context) -> str:
    cache_file = context.workspace.root / _DIGESTS
    cache = _read_json(cache_file)
    pairs, known = [], len(cache)
    for key, path in files:
        try:
            stamp = _stamp(path)
        except OSError as error:
            raise UnsupsegError(
                f"'{path}' cannot be read ({error.strerror}); it was there a moment ago."
            ) from None
        entry = cache.get(str(path.resolve()))
        if entry is None or entry[:2] != stamp:
            entry = [*stamp, _content(path)]
            cache[str(path.resolve())] = entry
            known = -1
        pairs.append([key, entry[2]])
    if known != len(cache):
        _write_cache(cache_file, cache, context)
    return digest_json(sorted(pairs))


def _content(path: Path) -> str:
    try:
        return content_digest(path)
    except OSError:
        return "unreadable"  # the stage that reads the image skips and lists it


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_cache(path: Path, value: object, context: Context) -> None:
    if context.read_only:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    except OSError:
        return  # a convenience: a read-only workspace fails where it matters, with its own message


def resolve_device(name: str) -> torch.device:
    """Return the torch device; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: there is no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device '{name}' is not usable here ({reason}); try --device auto.") from None
    return device


def resolve_workers(workers: int | None) -> int:
    """Return the number of decoding processes: the cores, at most 8."""
    return min(8, os.cpu_count() or 1) if workers is None else workers
