"""The images behind a configuration: opening them, and telling whether they are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unsupseg_cli.artifacts.context import ROOTS, Context
from unsupseg_cli.artifacts.identity import UNKNOWN
from unsupseg_cli.artifacts.manifest import DataSource, Manifest
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.digests import fingerprint
from unsupseg_cli.contents.fetched import address_of, brought, folder_of, parse_images, with_origin
from unsupseg_cli.core.address import is_address
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.options import DataConfig
from unsupseg_cli.core.paths import anchored
from unsupseg_cli.data.datasets import (
    Dataset,
    class_file_of,
    dataset_names,
    folder_name,
    frames_of,
    in_parts,
    open_dataset,
    space_of,
)
from unsupseg_cli.data.images import remarks_on_images
from unsupseg_cli.data.inputs import expand
from unsupseg_cli.data.items import Item, as_key
from unsupseg_cli.data.labels import LabelSpace
from unsupseg_cli.data.ranges import settle_reading
from unsupseg_cli.data.rasters import Windows
from unsupseg_cli.data.reading import PLAIN, Reading
from unsupseg_cli.data.video import is_video

_LOOKED_AT = 64  # images of a collection whose form is looked at


def open_data(
    config: DataConfig,
    context: Context,
    default_split: str | None = None,
    source: DataSource | None = None,
    left_out: Sequence[Path] = (),
    windows: Windows | None = None,
) -> Dataset:
    """Open the data set of a configuration, remembering where a named one lies; tell what a folder holds beside images.

    Args:
        config: names the images.
        context: remembers and reports.
        default_split: part where none is named.
        source: the images that are taken where none are named.
        left_out: folders that hold no images of the collection, such as where output goes.
        windows: how large images are cut; default: as the configuration says, or ``source`` was.

    Raises:
        UsageError: no data set was named anywhere, or it cannot be found.
        UnsupsegError: with ``strict``, a name in the folder is no readable file.
    """
    given = config.dataset is not None
    if not given and source is not None and source.named:
        if config.labels is None and config.class_file is None:
            dataset = _named_again(source, context, left_out, config.strict, windows)
            return read_as(dataset, Reading.from_json(source.reading))
        config = config.model_copy(update={"dataset": f"{_only_folder(source)}/"})
    if config.dataset is None and source is not None:
        images = same_images(source)
        left_out = (*left_out, *images.pop("left_out"))
        before = images.pop("windows")
        windows = windows or (None if config.windows else before)
        images |= {"root": config.root or images["root"], "pages": config.pages or images["pages"]}
        config = config.model_copy(update=images)
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
    fields = ("labels", "class_file", "image_suffix", "label_suffix", "pages")
    options: dict[str, Any] = {"root": root, "left_out": left_out}
    options |= {name: getattr(config, name) for name in fields}
    options["windows"] = windows or (Windows(config.windows) if config.windows else None)
    name, place = brought(config.dataset, context)
    options["left_out"] = tuple(folder_of(folder, place) for folder in options["left_out"])
    try:
        dataset = open_dataset(name, split=config.split or default_split, **options)
    except UsageError:
        if config.split is not None or default_split is None:
            raise
        dataset = open_dataset(name, **options)  # a folder need not have the usual split
    if config.split is None and default_split is not None and _lacks_labels(dataset):
        dataset = open_dataset(name, **options)  # nor labels of it
    dataset = with_origin(place, dataset)
    if config.root is not None and config.dataset in dataset_names():
        context.remember(ROOTS, {**roots, config.dataset: str(config.root.resolve())})
    if source is not None and not given:
        dataset = read_as(dataset, Reading.from_json(source.reading))
    _tell(dataset, context, config.strict)
    return _at_most(dataset, context)


def _lacks_labels(dataset: Dataset) -> bool:
    """Tell whether the images of a folder have no labels, though it has classes."""
    named = dataset.name in dataset_names()
    return dataset.space is not None and not named and not any(item.label for item in dataset.items)


def _at_most(dataset: Dataset, context: Context) -> Dataset:
    """Return a data set of as many images as a dry run looks at."""
    count = len(dataset.items)
    if context.most_images is None or context.most_images >= count:
        return dataset
    chosen = tuple(dataset.items[i * count // context.most_images] for i in range(context.most_images))
    return replace(dataset, items=chosen)


def _tell(dataset: Dataset, context: Context, strict: bool = False) -> None:
    """Report what a folder holds beside its images."""
    for remark in dataset.remarks:
        context.reporter.info(remark)
    if dataset.problem and strict:
        raise UnsupsegError(f"In '{dataset.root}' {dataset.problem} (--strict stops at it).")
    if dataset.problem:
        context.reporter.warn(dataset.problem)


def settle_pixels(
    dataset: Dataset,
    context: Context,
    before: Artifact | Reading = PLAIN,
    stretch: str | None = None,
) -> Dataset:
    """Return a data set whose images are read alike, and tell what is dropped or scaled of them.

    Args:
        dataset: the images.
        context: is told.
        before: bands, or the artifact as whose images these are read; types that it has no range for get one.
        stretch: see `settle_reading`.

    Raises:
        UnsupsegError: as `settle_reading`.
    """
    artifact = None if isinstance(before, Reading) else before
    asked = before if isinstance(before, Reading) else reading_of(before)
    reading, said = settle_reading(
        dataset.items, asked, stretch, own=artifact is None, reporter=context.reporter
    )
    count = min(len(dataset.items), _LOOKED_AT)
    looked_at = [dataset.items[i * len(dataset.items) // count].image for i in range(count)]
    for remark in (*remarks_on_images(looked_at, pages=dataset.pages, chosen=bool(reading.bands)), *said):
        context.reporter.warn(remark)
    return read_as(dataset, reading)


def same_images(data: DataSource) -> dict[str, Any]:
    """Return the options that name the data set of an artifact again, and the folders that it leaves out."""
    is_named = data.dataset in dataset_names()
    return {
        "dataset": data.dataset if is_named else f"{data.root}/",
        "root": Path(data.root) if is_named else None,
        "image_suffix": data.image_suffix or None,
        "pages": data.pages,
        "windows": Windows(**data.windows) if data.windows else None,
        "left_out": tuple(Path(folder) for folder in data.left_out),
    }


def reopen(data: DataSource, context: Context | None = None, **files: Any) -> Dataset:
    """Open the data set of an artifact again, with its labels (options of `open_dataset`).

    Raises:
        UsageError: it is not found.
    """
    if data.named and not any(files.values()):
        return read_as(_named_again(data), Reading.from_json(data.reading))
    location = same_images(data)
    name, place = brought(location.pop("dataset"), context)
    location["left_out"] = tuple(folder_of(folder, place) for folder in location["left_out"])
    dataset = with_origin(place, open_dataset(name, split=data.split, **files, **location))
    return read_as(dataset, Reading.from_json(data.reading))


def _only_folder(source: DataSource) -> str:
    """Return the folder that images were named by, which labels can be matched with; raises UsageError for others."""
    if len(source.named) == 1 and (is_address(source.named[0]) or Path(source.named[0]).is_dir()):
        return source.named[0]
    raise UsageError(
        "The images were named one by one, and labels are matched by names in one folder: name that folder with "
        "--dataset, beside --labels and --class-file."
    )


def _named_again(
    data: DataSource,
    context: Context | None = None,
    left_out: Sequence[Path] = (),
    strict: bool = False,
    windows: Windows | None = None,
) -> Dataset:
    """Open images that were named one by one again."""
    windows = windows or (Windows(**data.windows) if data.windows else None)
    names, out = [Path(name) for name in data.named], next(iter(left_out), None)
    return open_paths(names, context, out, strict, data.pages, windows, data.step)


def images_behind(manifest: Manifest, context: Context) -> Dataset:
    """Open the data set of an artifact again, with the very images that it was made from.

    Raises:
        UnsupsegError: the images are gone, or are others by now.
    """
    data = manifest.data
    assert data is not None
    try:
        dataset = reopen(data, context)
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
        root=dataset.origin or str(dataset.root.absolute()),  # found again from any folder
        fingerprint=fingerprint(((item.key, item.image) for item in dataset.items), context),
        count=len(dataset.items),
        **_scan_of(dataset),
    )


def _scan_of(dataset: Dataset) -> dict[str, Any]:
    """Return what finds the same images again."""
    place = (dataset.origin, dataset.root) if dataset.origin else None
    left_out = [address_of(folder, place) for folder in dataset.left_out]
    reading = dataset.items[0].reading if dataset.items else None
    return {
        "image_suffix": dataset.image_suffix,
        "left_out": left_out,
        "reading": reading.to_json() if reading else {},
        "pages": dataset.pages,
        "windows": asdict(dataset.windows) if dataset.windows else {},
        "named": list(dataset.named),
        "step": dataset.step,
    }


def read_as(dataset: Dataset, reading: Reading) -> Dataset:
    """Return a data set whose images are read by chosen bands and range."""
    if reading.is_plain:
        return dataset
    items = (replace(item, reading=_of_part(reading, item.reading)) for item in dataset.items)
    return replace(dataset, items=tuple(items))


def _of_part(reading: Reading, part: Reading | None) -> Reading:
    return replace(reading, page=part.page, window=part.window) if part else reading


def windows_side(artifact: Artifact) -> int | None:
    """Return the side of the windows that an artifact was made from, if images were cut."""
    data = artifact.manifest.data
    windows = data.windows if data else artifact.manifest.config.get("windows", {})
    return int(windows["side"]) if windows else None


def reading_of(artifact: Artifact) -> Reading:
    """Return how the images behind an artifact were read; a model from a file carries it in its configuration."""
    data = artifact.manifest.data
    return Reading.from_json(data.reading if data else artifact.manifest.config.get("reading", {}))


def identify_images(dataset: Dataset, context: Context) -> DataSource:
    """Describe images; in a dry run they are read for their digest only if an artifact of as many images is there."""
    count = len(dataset.items)
    if not context.read_only or any(item.entry.images == count for item in context.workspace.listed()):
        return describe_images(dataset, context)
    return DataSource(
        dataset=dataset.name,
        split=dataset.split,
        root=dataset.origin or str(dataset.root.absolute()),
        fingerprint=UNKNOWN,
        count=count,
        **_scan_of(dataset),
    )


def open_paths(
    paths: Sequence[Path],
    context: Context | None = None,
    out: Path | None = None,
    strict: bool = False,
    pages: bool = False,
    windows: Windows | None = None,
    step: int | None = None,
) -> Dataset:
    """Return images and folders named one by one as a data set without labels.

    Of several folders, each one's name begins the keys of its images.

    Args:
        paths: images, folders, videos, patterns and lists, see `inputs.expand`.
        context: tells what the folders hold beside images.
        out: folder that output goes to: no images are taken from it.
        strict: refuse a folder with names that are no readable files.
        pages: every page of a TIFF is an image of its own.
        windows: how large TIFFs are cut.
        step: every how manieth frame of a video is an image; default: one of each second.

    Raises:
        UsageError: a path does not exist, ``out`` is one of them, or two images would have the same key.
    """
    items: dict[str, Item] = {}
    remote = [is_address(path) for path in paths]
    named = tuple(
        str(parse_images(path)) if far else anchored(path, Path.cwd())
        for path, far in zip(paths, remote, strict=True)
    )
    here = [
        Path(brought(str(path), context)[0]) if far else path for path, far in zip(paths, remote, strict=True)
    ]
    paths = expand(here)
    for path in paths:
        if path.is_dir():
            left_out = [out] if out else ()
            part = open_dataset(f"{path}/", split="all", left_out=left_out, pages=pages, windows=windows)
        elif is_video(path):
            part = frames_of(path, step)
        else:
            single = Item(as_key(path.name), path, None)
            part = in_parts(Dataset("images", path.parent, "all", (single,)), pages, windows)
        if context is not None:
            _tell(part, context, strict)
        for item in part.items:
            if path.is_dir() and len(paths) > 1:
                item = replace(item, key=f"{as_key(path.resolve().name)}/{item.key}")
            if item.key in items:
                raise UsageError(
                    f"'{items[item.key].image}' and '{item.image}' have the same relative name '{item.key}'; predict "
                    "them in two calls."
                )
            items[item.key] = item
    root = paths[0] if paths[0].is_dir() else paths[0].parent
    parts: dict[str, Any] = {"pages": pages, "windows": windows, "named": named, "step": step}
    origin = named[0] if remote[0] else ""
    if len(paths) == 1 and paths[0].is_dir():  # with its labels, where it has some
        parts["space"] = part.space
        name = folder_name(root)
    else:
        name = "images"
    dataset = Dataset(name, root, "all", tuple(items.values()), origin=origin, **parts)
    return dataset if context is None else _at_most(dataset, context)


def require_videos(paths: Sequence[Path], step: int | None) -> None:
    """Raise UsageError for a step where no video is named."""
    if step is not None and not any(map(is_video, expand([path for path in paths if not is_address(path)]))):
        raise UsageError("--step has no effect: it is read where a video is named, and none is.")


def named_space(artifact: Artifact) -> LabelSpace | None:
    """Return the label space of the named data set an artifact was made from, if it was a named one."""
    data = artifact.manifest.data
    return space_of(data.dataset) if data is not None and data.dataset in dataset_names() else None


def default_classes(artifact: Artifact) -> int:
    """Return the size of the label space; raises UsageError for a folder, also one with labels beside its images."""
    space = named_space(artifact)
    if space is not None:
        return len(space.names)
    data = artifact.manifest.data
    file = class_file_of(Path(data.root)) if data is not None else None
    asked = "K (try 5 to 30)" if file is None else f"{len(LabelSpace.from_file(file).names)}, as '{file}' has"
    raise UsageError(
        f"How many classes a folder of images shows is yours to say: give --classes auto, or --classes {asked}; to "
        "`run` and `tune`, --set STAGE.classes=auto with the stage that makes pseudo-labels."
    )
