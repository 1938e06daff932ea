"""The images behind a configuration: opening them, and telling whether they are the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from unsupseg_cli.artifacts.canonical import digest_json
from unsupseg_cli.artifacts.context import DIGESTS, ROOTS, WEIGHTS, Context
from unsupseg_cli.artifacts.identity import UNKNOWN
from unsupseg_cli.artifacts.manifest import DataSource, Manifest
from unsupseg_cli.artifacts.sources import UNREADABLE, digest_or_unreadable, stamp
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.options import DataConfig
from unsupseg_cli.data.datasets import Dataset, dataset_names, open_dataset, space_of
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.labels import LabelSpace


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
    if config.dataset in dataset_names() and (config.labels or config.class_file):
        option = "--labels" if config.labels else "--class-file"
        raise UsageError(
            f"{option} has no effect: the data set '{config.dataset}' brings its own labels and classes. Leave it out, "
            f"or give the folder of the images with --dataset."
        )
    if config.root is not None and config.dataset not in dataset_names():
        raise UsageError(
            f"--root has no effect: '{config.dataset}' is a folder and no name of a data set. Leave it out."
        )
    roots = context.remembered(ROOTS)
    root = config.root or (Path(str(roots[config.dataset])) if config.dataset in roots else None)
    options: dict[str, Any] = {"root": root, "labels": config.labels, "class_file": config.class_file}
    try:
        dataset = open_dataset(config.dataset, split=config.split or default_split, **options)
    except UsageError:
        if config.split is not None or default_split is None:
            raise
        dataset = open_dataset(config.dataset, **options)  # a folder need not have the usual split
    if config.root is not None and config.dataset in dataset_names():
        context.remember(ROOTS, {**roots, config.dataset: str(config.root.resolve())})
    count = len(dataset.items)
    if context.most_images is not None and context.most_images < count:
        chosen = tuple(dataset.items[i * count // context.most_images] for i in range(context.most_images))
        dataset = replace(dataset, items=chosen)
    return dataset


def same_images(data: DataSource) -> dict[str, Any]:
    """Return the options that name the data set of an artifact again."""
    is_named = data.dataset in dataset_names()
    return {
        "dataset": data.dataset if is_named else f"{data.root}/",
        "root": Path(data.root) if is_named else None,
    }


def reopen(data: DataSource, labels: Path | None = None, class_file: Path | None = None) -> Dataset:
    """Open the data set of an artifact again; raises UsageError where it is not found."""
    location = same_images(data)
    return open_dataset(
        location["dataset"], root=location["root"], split=data.split, labels=labels, class_file=class_file
    )


def images_behind(manifest: Manifest, context: Context) -> Dataset:
    """Open the data set of an artifact again, with the very images that it was made from.

    Raises:
        UnsupsegError: the images are gone, or are others by now.
    """
    data = manifest.data
    assert data is not None
    try:
        dataset = reopen(data)
    except UsageError as error:
        raise UnsupsegError(
            f"{error} If the images were moved, run `{manifest.stage}` on them with --force, so that '{manifest.id}' "
            "knows where they are."
        ) from None
    if describe_images(dataset, context).fingerprint != data.fingerprint:
        raise UnsupsegError(
            f"The images in '{data.root}' are not those of the {manifest.kind} '{manifest.id}': some were changed, "
            f"added or removed since; run `{manifest.stage}` again."
        )
    return dataset


def describe_images(dataset: Dataset, context: Context) -> DataSource:
    """Return name, split, count and content fingerprint of a data set's images; raises UnsupsegError if one is gone."""
    return DataSource(
        dataset=dataset.name,
        split=dataset.split,
        root=str(dataset.root.absolute()),  # found again from any folder
        fingerprint=fingerprint(((item.key, item.image) for item in dataset.items), context),
        count=len(dataset.items),
    )


def identify_images(dataset: Dataset, context: Context) -> DataSource:
    """Describe images; in a dry run they are read for their digest only if an artifact of as many images is there."""
    count = len(dataset.items)
    if not context.read_only or any(item.entry.images == count for item in context.workspace.listed()):
        return describe_images(dataset, context)
    root = str(dataset.root.absolute())
    return DataSource(dataset=dataset.name, split=dataset.split, root=root, fingerprint=UNKNOWN, count=count)


def label_fingerprint(items: Iterable[Item], context: Context) -> str:
    """Return the content fingerprint of the label files; only evaluation and diagnosis call this."""
    return fingerprint(((item.key, item.label) for item in items if item.label is not None), context)


def space_digest(space: LabelSpace) -> str:
    """Return the digest of everything in a label space that decides how labels are read, scored and shown."""
    values = {part.name: getattr(space, part.name) for part in fields(space) if part.name != "hint"}
    return digest_json({name: _plain(value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(value[name]) for name in sorted(value)}
    return sorted(value) if isinstance(value, frozenset) else value


def remember_weights(backbone: str, file: Path, digest: str, context: Context) -> None:
    """Remember the digest of the weights in a file, so that a dry run need not load them."""
    remembered, entry = context.remembered(WEIGHTS), [*stamp(file), digest]
    name = f"{backbone} {file.resolve()}"
    if remembered.get(name) != entry:
        context.remember(WEIGHTS, {**remembered, name: entry})


def remembered_weights(backbone: str, file: Path, context: Context) -> str | None:
    """Return the digest that the weights in a file had, unless the file changed since or was never used."""
    entry = context.remembered(WEIGHTS).get(f"{backbone} {file.resolve()}")
    return str(entry[-1]) if entry and file.exists() and entry[:-1] == stamp(file) else None


def open_paths(paths: Sequence[Path]) -> Dataset:
    """Return images and folders named one by one as a data set without labels.

    Of several folders, each one's name begins the keys of its images.

    Raises:
        UsageError: a path does not exist, or two images would have the same key.
    """
    items: dict[str, Item] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"'{path}' does not exist; give images or folders of images.")
        folder_items = open_dataset(f"{path}/", split="all").items if path.is_dir() else None
        for item in folder_items or (Item(unicodedata.normalize("NFC", path.name), path, None),):
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


def fingerprint(files: Iterable[tuple[str, Path]], context: Context) -> str:
    """Return a digest of the contents of files under their names, see `file_digests`."""
    return digest_json(sorted(file_digests(files, context)))


def file_digests(files: Iterable[tuple[str, Path]], context: Context) -> list[list[str]]:
    """Return [name, digest of the content] of files; digests are remembered until a file changes.

    The call remembers what it saw (`Sources`). That a file is unreadable is asked again by every call.

    Raises:
        UnsupsegError: a file is gone, or is being written.
    """
    cache = context.remembered(DIGESTS)
    pairs, changed = [], False
    for name, path in files:
        place = str(path.resolve())
        try:
            seen, entry = stamp(path), cache.get(place)
            if entry is None or entry[:-1] != seen or entry[-1] == UNREADABLE:
                entry = [*seen, digest_or_unreadable(path)]
                if stamp(path) != seen:
                    raise UnsupsegError(f"'{path}' is being written: call again when it is at rest.")
                cache.pop(place, None)
                if entry[-1] != UNREADABLE:
                    cache[place], changed = entry, True
        except OSError as error:
            raise UnsupsegError(
                f"'{path}' cannot be read ({error.strerror}); it was there a moment ago."
            ) from None
        context.sources.add(path, seen, entry[-1])
        pairs.append([name, str(entry[-1])])
    if changed:
        context.remember(DIGESTS, cache)
    return pairs


def named_space(artifact: Artifact) -> LabelSpace | None:
    """Return the label space of the named data set an artifact was made from, if it was a named one."""
    data = artifact.manifest.data
    return space_of(data.dataset) if data is not None and data.dataset in dataset_names() else None


def default_classes(artifact: Artifact) -> int:
    """Return the size of the label space; raises UsageError for a plain folder, which has none."""
    space = named_space(artifact)
    if space is None:
        raise UsageError(
            "The images are a plain folder, whose number of classes nobody knows: give --classes K (try 5 to 30)."
        )
    return len(space.names)
