"""Data sets: a known one by name, or any folder of images; label files are listed, never opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.core.errors import UsageError, did_you_mean, reason_of
from unsupseg_cli.core.paths import local_path
from unsupseg_cli.core.words import counted
from unsupseg_cli.data.images import IMAGE_SUFFIXES
from unsupseg_cli.data.items import Item, NoMatchError, as_key, match_labels, relative_key
from unsupseg_cli.data.label_names import folders_of_labels, look_like_labels
from unsupseg_cli.data.labels import LabelSpace, named_space
from unsupseg_cli.data.layouts import LAYOUTS, Layout
from unsupseg_cli.data.rasters import Windows, coarse_validity, has_rasterio, part_of, require_rasterio
from unsupseg_cli.data.reading import Reading
from unsupseg_cli.data.scan import Scan, scan_images
from unsupseg_cli.data.tiff import SUFFIXES as TIFF_SUFFIXES
from unsupseg_cli.data.tiff import TiffHeader, pages_of, read_header
from unsupseg_cli.data.video import frame_numbers, require_av, video_header


@dataclass(frozen=True)
class Dataset:
    """The images of one split, in the order of their keys.

    ``pages`` and ``windows`` say that items are parts of files. ``named`` are the files and folders of images that were
    named one by one, ``step`` is the distance of the frames of videos among them. ``remarks`` and ``problem`` say what
    was found beside the images: told by whoever opens the data set. ``image_suffix`` and ``left_out`` are what finds
    the same images again. ``origin`` is the address that ``root`` stands for, of images that were fetched.
    """

    name: str
    root: Path
    split: str
    items: tuple[Item, ...]
    space: LabelSpace | None = None
    protocol: str = "native"
    remarks: tuple[str, ...] = ()
    problem: str = ""
    image_suffix: str = ""
    left_out: tuple[Path, ...] = ()
    pages: bool = False
    windows: Windows | None = None
    named: tuple[str, ...] = ()
    step: int | None = None
    origin: str = ""

    @property
    def unlabelled(self) -> list[Item]:
        """The items without a label file."""
        return [item for item in self.items if item.label is None]


def open_dataset(
    name_or_dir: str,
    root: Path | None = None,
    split: str | None = None,
    labels: Path | None = None,
    class_file: Path | None = None,
    image_suffix: str | None = None,
    label_suffix: str | None = None,
    left_out: Sequence[Path] = (),
    pages: bool = False,
    windows: Windows | None = None,
) -> Dataset:
    """Open a known data set by name, or any folder tree of images.

    A name wins unless the text has a path separator; so ``./camvid`` is a folder and ``camvid`` the data set. A folder
    that holds both ``images`` and ``labels`` is read as such: its images are those below ``images``; its labels count
    once there is a class file, given or lying beside them as ``classes.json`` or ``classes.txt``.

    Args:
        name_or_dir: a name of `dataset_names`, or a folder.
        root: where a known data set lies.
        split: which part. A known data set defaults to its first one; a folder has those sub-folders that are named
            after splits, and defaults to all images.
        labels: folder of label images for a folder of images, matched by relative name without suffix; where it has
            a sub-folder named after the split, that one.
        class_file: class names, ids and colours of these labels.
        image_suffix: ending of the images' names before the dot; other files are no images.
        label_suffix: ending of the labels' names likewise.
        left_out: folders below that hold no images of the collection.
        pages: every page of a TIFF is an image of its own, without a label.
        windows: large TIFFs are cut; every window is an image of its own, without a label.

    Raises:
        UsageError: nothing is found; the message says where it looked and what it expected.
    """
    try:
        name_or_dir = local_path(name_or_dir)
    except ValueError as error:
        raise UsageError(f"The images: {error}.") from None
    is_path = os.sep in name_or_dir or (name_or_dir not in LAYOUTS and Path(name_or_dir).exists())
    if is_path:
        files = _Files(labels, class_file, image_suffix or "", label_suffix or "", tuple(left_out))
        return in_parts(_open_folder(Path(name_or_dir), split, files), pages, windows)
    if name_or_dir not in LAYOUTS:
        raise UsageError(f"No folder and no data set '{name_or_dir}'{did_you_mean(name_or_dir, LAYOUTS)}")
    if image_suffix or label_suffix or pages or windows:
        raise UsageError(
            f"--image-suffix, --label-suffix, --pages and --windows are of folders; '{name_or_dir}' has a layout of "
            "its own."
        )
    return _open_known(LAYOUTS[name_or_dir], root, split)


def in_parts(dataset: Dataset, pages: bool = False, windows: Windows | None = None) -> Dataset:
    """Return a data set without images that hold no data, with pages or windows as images of their own if asked for.

    Raises:
        UsageError: both are asked for, a label would be of several parts, or no image is left.
    """
    if pages and windows:
        raise UsageError("--pages and --windows do not go together: a page of a TIFF is not cut.")
    dataset = _with_pages(dataset) if pages else _with_windows(dataset, windows)
    if not dataset.items and dataset.remarks:
        raise UsageError(f"No image of '{dataset.root}' is left: {'; '.join(dataset.remarks)}.")
    return dataset


def _with_windows(dataset: Dataset, windows: Windows | None) -> Dataset:
    """Return a data set in which each window of a large TIFF is an image, ``NAME.tif/TOP_LEFT_HEIGHTxWIDTH.tif``.

    Images and windows that hold no data are left out and counted.
    """
    items: list[Item] = []
    empty: list[str] = []
    cut = holes = 0
    for item in dataset.items:
        header = read_header(item.image) if item.image.suffix.lower() in TIFF_SUFFIXES else None
        if header is None or (windows is None and not (header.is_raster and has_rasterio())):
            items.append(item)
            continue
        coarse = coarse_validity(item.image) if header.is_raster and has_rasterio() else None
        if coarse is not None and not coarse.any():
            empty.append(item.key)
        elif windows is None or max(header.height, header.width) <= windows.side:
            items.append(item)
        else:
            require_rasterio("--windows")
            parts = _parts_of(item, header, windows)
            kept = [part for part in parts if coarse is None or _holds_data(coarse, part, windows.whole)]
            cut, holes = cut + len(kept), holes + len(parts) - len(kept)
            items += kept
    remarks = list(dataset.remarks)
    if empty:
        remarks.append(
            f"left out: {counted(len(empty), 'image')} whose pixels all hold no data, such as '{empty[0]}'"
        )
    if windows and (cut or holes):
        which = "with pixels that hold no data" if windows.whole else "that hold no data"
        left_out = f", {holes:,} {which} are left out" if holes else ""
        remarks.append(f"windows of {windows.side} pixels: {cut:,}{left_out}")
    return replace(dataset, items=tuple(items), remarks=tuple(remarks), windows=windows)


def _parts_of(item: Item, header: TiffHeader, windows: Windows) -> list[Item]:
    if item.label is not None:
        raise UsageError(
            f"'{item.image}' is cut into windows and has one label; leave --windows or --labels out "
            "(images that are named with --dataset are cut only by --windows)."
        )
    if header.orientation != 1:
        raise UsageError(f"'{item.image}' is turned by its EXIF orientation, and such an image is not cut.")
    parts = []
    for window in windows.of(header.height, header.width):
        top, left, height, width = window
        key = f"{item.key}/{top:06d}_{left:06d}_{height}x{width}.tif"
        parts.append(Item(key, item.image, None, Reading(window=window)))
    return parts


def _holds_data(coarse: NDArray[np.bool_], part: Item, everywhere: bool) -> bool:
    assert part.reading is not None
    assert part.reading.window is not None
    inside = part_of(coarse, part.reading.window)
    return bool(inside.all() if everywhere else inside.any())


def frames_of(path: Path, step: int | None) -> Dataset:
    """Return the frames of a video as images, ``NAME/000001.png`` and so on.

    Raises:
        UsageError: the extra `video` is missing, or the video cannot be read.
    """
    require_av()
    try:
        numbers, header = frame_numbers(path, step), video_header(path)
    except Exception as error:  # FFmpeg raises anything on damaged files
        raise UsageError(f"The video '{path}' cannot be read: {reason_of(error)}.") from None
    key = as_key(path.name)
    items = (Item(f"{key}/{number:06d}.png", path, None, Reading(page=number)) for number in numbers)
    remark = (
        f"'{path.name}': {len(numbers):,} of {len(header.times):,} frames, every {numbers.step}. (--step)"
    )
    lacking = len(header.times) < header.declared
    problem = (
        f"'{path.name}' is cut off or damaged: {len(header.times):,} of the {header.declared:,} frames that it "
        "declares are there"
    )
    return Dataset(
        "images", path.parent, "all", tuple(items), remarks=(remark,), problem=problem if lacking else ""
    )


def _with_pages(dataset: Dataset) -> Dataset:
    """Return a data set in which each page of a TIFF of several is an image, ``NAME.tif/0001.tif`` and so on.

    Raises:
        UsageError: such a file has a label, which would be of all its pages.
    """
    items: list[Item] = []
    remarks = list(dataset.remarks)
    for item in dataset.items:
        pages, others = pages_of(item.image) if item.image.suffix.lower() in TIFF_SUFFIXES else (1, 0)
        if pages > 1 and item.label is not None:
            raise UsageError(
                f"'{item.image}' has {pages} pages and one label; leave --pages or --labels out."
            )
        if others:
            remarks.append(f"'{item.image.name}': {others} pages of another form than the first are dropped")
        if pages == 1:
            items.append(item)
            continue
        for page in range(1, pages + 1):
            items.append(Item(f"{item.key}/{page:04d}.tif", item.image, None, Reading(page=page)))
    remarks.append(f"{counted(len(items), 'page')} of {counted(len(dataset.items), 'file')}, each an image")
    return replace(dataset, items=tuple(items), remarks=tuple(remarks), pages=True)


def dataset_names() -> tuple[str, ...]:
    """Return the names of the known data sets."""
    return tuple(LAYOUTS)


def space_of(name: str) -> LabelSpace:
    """Return the label space of a known data set; raises UsageError for an unknown name."""
    if name not in LAYOUTS:
        raise UsageError(f"Unknown data set '{name}'{did_you_mean(name, LAYOUTS)}")
    if name == "scenes":
        return LabelSpace.from_file(scenes_root() / "classes.json")
    return named_space(LAYOUTS[name].space)


def scenes_root() -> Path:
    """Return the folder of the bundled scenes: in an installed package, or in a checkout."""
    installed = Path(__file__).parent / "scenes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "samples" / "scenes"


# A folder of images --------------------------------------------------------------------------------------


_SPLIT_NAMES = ("train", "val", "test", "validation", "training", "testing")
_ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"}
_CLASS_FILES = ("classes.json", "classes.txt")


def class_file_of(folder: Path) -> Path | None:
    """Return the file that names the classes of a folder's labels, where one lies in it."""
    return next(filter(Path.is_file, (folder / name for name in _CLASS_FILES)), None)


@dataclass(frozen=True)
class _Files:
    """What is said of the files of a folder."""

    labels: Path | None
    class_file: Path | None
    image_suffix: str
    label_suffix: str
    left_out: tuple[Path, ...]


def _open_folder(folder: Path, split: str | None, files: _Files) -> Dataset:
    if not folder.is_dir():
        problem = "is a file; give the folder it lies in" if folder.exists() else "does not exist"
        if folder.suffix.lower() in _ARCHIVES and folder.exists():
            problem = "is an archive; unpack it and give the folder"
        raise UsageError(f"The folder '{folder}' {problem}.")
    images, labels, class_file = folder, files.labels, files.class_file
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        images = folder / "images"
        class_file = class_file or class_file_of(folder)
        labels = labels or (folder / "labels" if class_file is not None else None)
    if labels is not None and class_file is None:
        raise UsageError("--labels needs --class-file: a JSON or text file with the class names.")
    split = split or "all"
    if split != "all":
        images = _split_of(images, split)
    whole = labels
    if labels is not None and images.name in _SPLIT_NAMES and (labels / images.name).is_dir():
        labels = labels / images.name
    left_out = files.left_out
    if any(path.resolve() in (folder.resolve(), images.resolve()) for path in left_out):
        raise UsageError(
            f"'{images}' is where output goes and where images are read: name another folder with --out, such as "
            f"'{images / 'segmented'}'."
        )
    if whole is not None and whole.resolve() != images.resolve():
        left_out = (*left_out, whole)
    elif whole is not None and not (files.image_suffix or files.label_suffix):
        raise UsageError(
            f"--labels '{whole}' is the folder of the images itself: tell them apart by the endings of their names, "
            "with --image-suffix and --label-suffix."
        )
    scan = Scan()
    paths, more = _meant(images, list(scan_images(images, left_out, files.image_suffix, scan)), files)
    left_out, scan.left_out = (*left_out, *more), [*scan.left_out, *more.values()]
    if not paths:
        ending = f" whose name ends in '{files.image_suffix}'" if files.image_suffix else ""
        reasons = "; ".join(filter(None, [*(scan.remarks(0) if scan.others else ()), scan.problem()]))
        raise UsageError(
            f"No image in '{images}' or below{ending}; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
            + (f" ({reasons}.)" if reasons else "")
        )
    space = LabelSpace.from_file(class_file) if class_file is not None else None
    endings = {"image_suffix": files.image_suffix, "label_suffix": files.label_suffix}
    unlabelled = []
    try:
        items = match_labels(images, paths, labels, **endings)
    except NoMatchError:
        if split == "all" or files.labels is not None or not _has_split(folder / "labels"):
            raise
        unlabelled = [f"'{labels}' has no '{images.name}': these images count as unlabelled"]
        items = match_labels(images, paths, None, **endings)
    return Dataset(
        folder_name(folder),
        folder,
        split,
        tuple(items),
        space,
        remarks=(*scan.remarks(len(paths)), *_doubts(images, paths), *unlabelled),
        problem=scan.problem(),
        image_suffix=files.image_suffix,
        left_out=tuple(path for path in left_out if images.resolve() in path.resolve().parents),
    )


def _has_split(labels: Path) -> bool:
    """Tell whether a folder of labels has a sub-folder of a split."""
    return any((labels / name).is_dir() for name in _SPLIT_NAMES)


def _split_of(images: Path, split: str) -> Path:
    """Return the sub-folder of a split."""
    available = sorted(part.name for part in images.iterdir() if part.is_dir() and part.name in _SPLIT_NAMES)
    if split not in available:
        raise UsageError(
            f"The folder '{images}' has no split '{split}' (a sub-folder of that name); it has "
            f"{', '.join(available) or 'none'}. Leave --split out to take all images."
        )
    return images / split


def _meant(images: Path, paths: list[Path], files: _Files) -> tuple[list[Path], dict[Path, str]]:
    """Return the images without those in folders of labels, and these folders, each with the reason."""
    if files.image_suffix:
        return paths, {}
    counts = folders_of_labels([relative_key(images, path) for path in paths])
    folders = {
        images
        / name: f"'{name}' ({count} files called like the images: labels, it seems; to take them as images too, "
        "name the folder by itself)"
        for name, count in counts.items()
    }
    return [path for path in paths if not folders.keys() & set(path.parents)], folders


def _doubts(images: Path, paths: list[Path]) -> list[str]:
    pair = look_like_labels(relative_key(images, path) for path in paths)
    if pair is None:
        return []
    return [
        f"'{pair[1]}' looks like a label of '{pair[0]}' but is taken as an image: to leave such files out, give "
        "--image-suffix, or move them into a folder named by --labels"
    ]


def folder_name(folder: Path) -> str:
    """Return a name that no known data set has."""
    name = folder.resolve().name or "images"
    return f"{name}-folder" if name in LAYOUTS else name


# Known layouts -------------------------------------------------------------------------------------------


class MissingImages(UsageError):  # noqa: N818 - says what it is
    """The images of a known data set are not where they were looked for, or nobody said where they are."""


def _open_known(layout: Layout, root: Path | None, split: str | None) -> Dataset:
    split = split or layout.splits[0]
    if split not in layout.splits:
        raise UsageError(f"'{layout.name}' has no split '{split}'{did_you_mean(split, layout.splits)}")
    if layout.name == "scenes":
        root = scenes_root()
    if root is None:
        folder_hint = (
            f" (For the folder of that name here, write './{layout.name}'.)"
            if Path(layout.name).is_dir()
            else ""
        )
        raise MissingImages(
            f"Where does '{layout.name}' lie? Give --root with the folder that holds {layout.expects}, or write "
            f'`root = "..."` into an unsupseg.toml.{folder_hint}'
        )
    if not root.is_dir():
        raise MissingImages(f"The root '{root}' of '{layout.name}' does not exist.")
    items = layout.find(root, split)
    if not items:
        raise MissingImages(_not_found_message(layout, root, split))
    return Dataset(layout.name, root, split, tuple(items), space_of(layout.name), layout.protocol)


def _not_found_message(layout: Layout, root: Path, split: str) -> str:
    message = f"'{root}' does not hold split '{split}' of '{layout.name}': expected {layout.expects}."
    available = [name for name in layout.splits if name != split and layout.find(root, name)]
    if available:
        return f"{message} It holds {', '.join(available)}: give one as --split."
    root = root.resolve()
    near = [root.parent, root.parent.parent, *(path for path in sorted(root.iterdir()) if path.is_dir())]
    for candidate in near:
        if layout.find(candidate, split):
            return f"{message} '{candidate}' does: give it as --root."
    contents = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    return f"{message} It holds {contents}."
