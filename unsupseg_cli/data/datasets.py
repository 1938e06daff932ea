"""Data sets: where images and labels lie, and which belong together.

Label files are only listed here, never opened.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unsupseg_cli.core.errors import UsageError, did_you_mean
from unsupseg_cli.data.images import IMAGE_SUFFIXES
from unsupseg_cli.data.labels import LabelSpace, named_space


@dataclass(frozen=True)
class Item:
    """One image: ``key`` is its path below the image root, with forward slashes."""

    key: str
    image: Path
    label: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """The images of one split, in the order of their keys."""

    name: str
    root: Path
    split: str
    items: tuple[Item, ...]
    space: LabelSpace | None = None
    protocol: str = "native"

    @property
    def unlabelled(self) -> list[Item]:
        """The items without a label file."""
        return [item for item in self.items if item.label is None]


@dataclass(frozen=True)
class Layout:
    """A known data set: how its files are found below a root.

    ``find`` returns the items of a split, or None where the layout does not fit the root.
    """

    name: str
    description: str
    splits: tuple[str, ...]
    space: str
    protocol: str
    expects: str
    find: Callable[[Path, str], list[Item] | None]
    licence: str


def open_dataset(
    name_or_dir: str,
    root: Path | None = None,
    split: str | None = None,
    labels: Path | None = None,
    class_file: Path | None = None,
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

    Raises:
        UsageError: nothing is found; the message says where it looked and what it expected.
    """
    is_path = os.sep in name_or_dir or (name_or_dir not in LAYOUTS and Path(name_or_dir).exists())
    if is_path:
        return _open_folder(Path(name_or_dir), split, labels, class_file)
    if name_or_dir not in LAYOUTS:
        raise UsageError(f"No folder and no data set '{name_or_dir}'{did_you_mean(name_or_dir, LAYOUTS)}")
    return _open_known(LAYOUTS[name_or_dir], root, split)


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


def scan_images(root: Path) -> Iterator[Path]:
    """Yield the images below a folder, sorted, without hidden files; links to a folder above are not followed."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(folder) / name


# A folder of images --------------------------------------------------------------------------------------


_SPLIT_NAMES = ("train", "val", "test", "validation", "training", "testing")
_CLASS_FILES = ("classes.json", "classes.txt")


def _open_folder(folder: Path, split: str | None, labels: Path | None, class_file: Path | None) -> Dataset:
    if not folder.is_dir():
        what = "is a file; give the folder it lies in" if folder.exists() else "does not exist"
        raise UsageError(f"The folder '{folder}' {what}.")
    images = folder
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        images = folder / "images"
        class_file = class_file or next(filter(Path.is_file, (folder / name for name in _CLASS_FILES)), None)
        labels = labels or (folder / "labels" if class_file is not None else None)
    if labels is not None and class_file is None:
        raise UsageError("--labels needs --class-file: a JSON or text file with the class names.")
    split = split or "all"
    if split != "all":
        available = sorted(
            part.name for part in images.iterdir() if part.is_dir() and part.name in _SPLIT_NAMES
        )
        if split not in available:
            raise UsageError(
                f"The folder '{images}' has no split '{split}' (a sub-folder of that name); it has "
                f"{', '.join(available) or 'none'}. Leave --split out to take all images."
            )
        images = images / split
    if labels is not None and images.name in _SPLIT_NAMES and (labels / images.name).is_dir():
        labels = labels / images.name
    paths = list(scan_images(images))
    if not paths:
        raise UsageError(
            f"No image in '{images}' or below; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    space = LabelSpace.from_file(class_file) if class_file is not None else None
    return Dataset(_folder_name(folder), folder, split, tuple(match_labels(images, paths, labels)), space)


def _folder_name(folder: Path) -> str:
    """Return a name that no known data set has."""
    name = folder.resolve().name or "images"
    return f"{name}-folder" if name in LAYOUTS else name


def match_labels(root: Path, images: Iterable[Path], labels: Path | None) -> list[Item]:
    """Pair images with labels of the same relative name without suffix; sort order plays no role.

    Raises:
        UsageError: the label folder is missing or matches nothing, or two files have the same name.
    """
    found: dict[str, Path] = {}
    if labels is not None:
        if not labels.is_dir():
            raise UsageError(f"The label folder '{labels}' does not exist.")
        found = _by_stem(labels, scan_images(labels))
    pairs = [(_key(root, path), path) for path in images]
    if labels is not None:
        _by_stem(root, (path for _, path in pairs))
    items = [Item(key, path, found.get(_stem(key))) for key, path in sorted(pairs)]
    if labels is not None and not any(item.label for item in items):
        raise UsageError(
            f"No label in '{labels}' has the relative name of an image: the first image is '{items[0].key}', the "
            f"first label '{next(iter(found), 'none')}'."
        )
    return items


def _key(root: Path, path: Path) -> str:
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())


def _stem(key: str) -> str:
    return key[: -len(Path(key).suffix)]


def _by_stem(root: Path, paths: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        stem = _stem(_key(root, path))
        if stem in found:
            raise UsageError(
                f"'{found[stem]}' and '{path}' have the same relative name '{stem}', so that labels cannot be matched; "
                "rename or remove one."
            )
        found[stem] = path
    return found


# Known layouts -------------------------------------------------------------------------------------------


def _open_known(layout: Layout, root: Path | None, split: str | None) -> Dataset:
    split = split or layout.splits[0]
    if split not in layout.splits:
        raise UsageError(f"'{layout.name}' has no split '{split}'{did_you_mean(split, layout.splits)}")
    if layout.name == "scenes":
        root = scenes_root()
    if root is None:
        here = (
            f" (For the folder of that name here, write './{layout.name}'.)"
            if Path(layout.name).is_dir()
            else ""
        )
        raise UsageError(
            f"Where does '{layout.name}' lie? Give --root with the folder that holds {layout.expects}, or write "
            f'`root = "..."` into an unsupseg.toml.{here}'
        )
    if not root.is_dir():
        raise UsageError(f"The root '{root}' of '{layout.name}' does not exist.")
    items = layout.find(root, split)
    if not items:
        raise UsageError(_not_found(layout, root, split))
    return Dataset(layout.name, root, split, tuple(items), space_of(layout.name), layout.protocol)


def _not_found(layout: Layout, root: Path, split: str) -> str:
    message = f"'{root}' does not hold split '{split}' of '{layout.name}': expected {layout.expects}."
    others = [other for other in layout.splits if other != split and layout.find(root, other)]
    if others:
        return f"{message} It holds {', '.join(others)}: give one as --split."
    root = root.resolve()
    near = [root.parent, root.parent.parent, *(path for path in sorted(root.iterdir()) if path.is_dir())]
    for candidate in near:
        if layout.find(candidate, split):
            return f"{message} '{candidate}' does: give it as --root."
    there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    return f"{message} It holds {there}."


def _find_split_folders(root: Path, split: str) -> list[Item] | None:
    images, labels = root / "images" / split, root / "labels" / split
    if not images.is_dir():
        return None
    return match_labels(images, scan_images(images), labels if labels.is_dir() else None)


def _find_voc(root: Path, split: str) -> list[Item] | None:
    base = root / "VOC2012" if (root / "VOC2012").is_dir() else root
    listing = base / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.is_file():
        return None
    items = []
    for name in listing.read_text(encoding="utf-8").split():
        label = base / "SegmentationClass" / f"{name}.png"
        image = base / "JPEGImages" / f"{name}.jpg"
        items.append(Item(f"{name}.jpg", image, label if label.exists() else None))
    return items


def _find_cityscapes(root: Path, split: str) -> list[Item] | None:
    images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    if not images.is_dir():
        return None
    items = []
    for path in sorted(images.glob("*/*_leftImg8bit.png")):
        stem = path.name.removesuffix("_leftImg8bit.png")
        label = labels / path.parent.name / f"{stem}_gtFine_labelIds.png"
        items.append(Item(_key(images, path), path, label if label.exists() else None))
    return items


def _find_cocostuff(root: Path, split: str) -> list[Item] | None:
    images, labels = root / "images" / f"{split}2017", root / "annotations" / f"{split}2017"
    if not images.is_dir():
        return None
    curated = root / "curated" / f"{split}2017" / "Coco164kFull_Stuff_Coarse_7.txt"
    listed = curated.is_file()
    names = curated.read_text("utf-8").split() if listed else [path.stem for path in images.glob("*.jpg")]
    items = []
    for name in sorted(names):
        label = labels / f"{name}.png"
        items.append(Item(f"{name}.jpg", images / f"{name}.jpg", label if label.exists() else None))
    return items


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            name="scenes",
            description="The bundled rendered scenes: for tests and the first minute",
            splits=("train", "val"),
            space="scenes",
            protocol="native",
            expects="images/SPLIT, labels/SPLIT and classes.json",
            find=_find_split_folders,
            licence="Apache-2.0, as this tool",
        ),
        Layout(
            name="camvid",
            description="CamVid, 11 classes: 367 train, 101 val, 233 test frames of street video",
            splits=("train", "val", "test"),
            space="camvid11",
            protocol="native",
            expects="images/{train,val,test}/*.jpg and labels/{train,val,test}/*.png with classes 0-10, void 11",
            find=_find_split_folders,
            licence="Brostow et al. 2009; research use",
        ),
        Layout(
            name="voc2012",
            description="PASCAL VOC 2012 segmentation, 20 classes and background",
            splits=("train", "val", "trainval"),
            space="voc2012",
            protocol="native",
            expects="VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}",
            find=_find_voc,
            licence="Flickr terms; research use",
        ),
        Layout(
            name="cityscapes",
            description="Cityscapes, 27 classes: 2,975 train, 500 val frames of street video",
            splits=("train", "val", "test"),
            space="cityscapes27",
            protocol="stego",
            expects="leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png",
            find=_find_cityscapes,
            licence="Cityscapes terms; non-commercial, registration",
        ),
        Layout(
            name="cocostuff27",
            description="COCO-Stuff in 27 coarse classes: with the curated lists 49,629 train, 2,175 val images",
            splits=("train", "val"),
            space="cocostuff27",
            protocol="stego",
            expects="images/{train2017,val2017}/*.jpg, annotations/{train2017,val2017}/*.png (stuffthingmaps) and, "
            "else all images are taken, curated/{train2017,val2017}/Coco164kFull_Stuff_Coarse_7.txt",
            find=_find_cocostuff,
            licence="Flickr terms; annotations CC BY 4.0",
        ),
    )
}
