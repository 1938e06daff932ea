"""The known data sets: how the files of each lie below its root, in the official layouts.

A finder returns the items of a split, or None where the layout does not fit the root. Labels are listed, not opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.items import Item, match_labels, relative_key
from unsupseg_cli.data.scan import scan_images

Find = Callable[[Path, str], list[Item] | None]

CURATED = "Coco164kFull_Stuff_Coarse_7.txt"
"""List of the images with much stuff that COCO-Stuff-27 is trained and scored on. Source: PiCIE, STEGO, PriMaPs."""

_SHOWN = 3  # missing images named in an error


@dataclass(frozen=True)
class Layout:
    """A known data set.

    Attributes:
        name: of the data set.
        description: one line.
        splits: the first is the default.
        space: its label space.
        protocol: the rules of evaluation that are taken unless others are named.
        expects: what must lie below the root.
        find: finds the items of a split.
        licence: a note on what the images may be used for.
        citation: the paper.
        counts: official number of images by split.
    """

    name: str
    description: str
    splits: tuple[str, ...]
    space: str
    protocol: str
    expects: str
    find: Find
    licence: str
    citation: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


def _first_folder(*candidates: Path) -> Path | None:
    """Return the first of some paths that is a folder."""
    return next(filter(Path.is_dir, candidates), None)


def _split_folders(root: Path, split: str) -> list[Item] | None:
    images, labels = root / "images" / split, root / "labels" / split
    if not images.is_dir():
        return None
    return match_labels(images, scan_images(images), labels if labels.is_dir() else None)


def _items_of_list(
    listing: Path, names: Iterable[str], images: Path, suffix: str, labels: Path
) -> list[Item]:
    """Return the items that a list names, ``NAME.suffix`` in one folder and ``NAME.png`` in the other.

    Raises:
        UsageError: the list names images that are not there.
    """
    present = {path.name for path in images.iterdir()} if images.is_dir() else set()
    labelled = {path.name for path in labels.iterdir()} if labels.is_dir() else set()
    items, missing = [], []
    for name in sorted(set(names)):
        if f"{name}{suffix}" not in present:
            missing.append(name)
        label = labels / f"{name}.png" if f"{name}.png" in labelled else None
        items.append(Item(f"{name}{suffix}", images / f"{name}{suffix}", label))
    if missing:
        raise UsageError(
            f"The list '{listing}' names {len(missing)} of {len(items)} images that are not in '{images}' "
            f"({', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}): the download is not complete, "
            "or the list belongs to another data set."
        )
    return items


def _voc(year: str, root: Path, split: str) -> list[Item] | None:
    base = root / f"VOC{year}" if (root / f"VOC{year}").is_dir() else root
    listing = base / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.is_file():
        return None
    labels = base / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
    return _items_of_list(
        listing, listing.read_text("utf-8-sig").split(), base / "JPEGImages", ".jpg", labels
    )


def _cityscapes(root: Path, split: str) -> list[Item] | None:
    images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    if not images.is_dir():
        return None
    items = []
    for path in sorted(images.glob("*/*_leftImg8bit.png")):
        stem = path.name.removesuffix("_leftImg8bit.png")
        label = labels / path.parent.name / f"{stem}_gtFine_labelIds.png"
        items.append(Item(relative_key(images, path), path, label if label.exists() else None))
    return items


def _cocostuff(root: Path, split: str) -> list[Item] | None:
    part, full = split.removesuffix("-full"), split.endswith("-full")
    images, labels = root / "images" / f"{part}2017", root / "annotations" / f"{part}2017"
    if not images.is_dir():
        return None
    curated = root / "curated" / f"{part}2017" / CURATED
    if curated.is_file() and not full:
        return _items_of_list(curated, curated.read_text("utf-8-sig").split(), images, ".jpg", labels)
    return _items_of_list(images, (path.stem for path in images.glob("*.jpg")), images, ".jpg", labels)


def _coco20k(root: Path, split: str) -> list[Item] | None:
    """The 19,817 images of COCO 2014 train that object discovery uses, with the labels of COCO-Stuff."""
    listing = root / "coco_20k_filenames.txt"
    images = _first_folder(root / "images" / "train2014", root / "train2014")
    if not listing.is_file() or images is None:
        return None
    names = [Path(line).stem for line in listing.read_text("utf-8-sig").split()]
    items = _items_of_list(listing, names, images, ".jpg", images)
    # COCO-Stuff names its labels by the number alone, and spreads those of 2014 train over two folders.
    folders = [root / "annotations" / part for part in ("train2017", "val2017")]
    labels = {path.stem: path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return [Item(item.key, item.image, labels.get(item.image.stem.rsplit("_", 1)[-1])) for item in items]


def _potsdam(root: Path, split: str) -> list[Item] | None:
    """Tiles that ``datasets prepare potsdam3`` cut, or the community's 200x200 ``.mat`` files with their lists."""
    if (root / "images" / split).is_dir():
        return _split_folders(root, split)
    names = {"train": "labelled_train", "val": "labelled_test", "unlabelled": "unlabelled_train"}
    listing = root / f"{names[split]}.txt"
    if not listing.is_file() or not (root / "imgs").is_dir():
        return None
    items = _items_of_list(
        listing, listing.read_text("utf-8-sig").split(), root / "imgs", ".mat", root / "none"
    )
    labels = [root / "gt" / item.image.name for item in items]
    return [
        Item(item.key, item.image, label if label.exists() else None)
        for item, label in zip(items, labels, strict=True)
    ]


def _lip(root: Path, split: str) -> list[Item] | None:
    images = _first_folder(root / "TrainVal_images" / f"{split}_images", root / f"{split}_images")
    if images is None:
        return None
    parsing = root / "TrainVal_parsing_annotations"
    labels = _first_folder(parsing / f"{split}_segmentations", root / f"{split}_segmentations")
    return match_labels(images, scan_images(images), labels)


def _imagenet_s(count: int, root: Path, split: str) -> list[Item] | None:
    bases = (root / f"ImageNetS{count}", root)
    base = next((folder for folder in bases if (folder / "validation").is_dir()), None)
    name = {"val": "validation"}.get(split, split)
    if base is None or not (base / name).is_dir():
        return None
    if base == root and root.name.startswith("ImageNetS") and root.name != f"ImageNetS{count}":
        return None
    labels = base / f"{name}-segmentation"
    return match_labels(base / name, scan_images(base / name), labels if labels.is_dir() else None)


def _kitti_step(root: Path, split: str) -> list[Item] | None:
    """Frames ``image_02/SEQUENCE/FRAME.png`` whose panoptic maps lie in ``panoptic_maps/SPLIT/SEQUENCE``."""
    maps = root / "panoptic_maps" / split
    images = _first_folder(root / "training" / "image_02", root / "image_02")
    if images is None or not maps.is_dir():
        return None
    items = []
    for sequence in sorted(path.name for path in maps.iterdir() if path.is_dir()):
        for path in sorted((images / sequence).glob("*.png")):
            label = maps / sequence / path.name
            items.append(Item(relative_key(images, path), path, label if label.exists() else None))
    return items


_COCO: dict[str, Any] = {
    "find": _cocostuff,
    "splits": ("train", "val", "train-full", "val-full"),
    "expects": "images/{train2017,val2017}/*.jpg, annotations/{train2017,val2017}/*.png (stuffthingmaps) and, for the "
    f"curated train and val, curated/{{train2017,val2017}}/{CURATED} (else all images are taken)",
    "licence": "Flickr terms; annotations CC BY 4.0",
    "citation": "Caesar et al., COCO-Stuff, CVPR 2018",
    "protocol": "stego",
}
_COCO_COUNTS = {"train": 49_629, "val": 2_175, "train-full": 118_287, "val-full": 5_000}
_CITY: dict[str, Any] = {
    "find": _cityscapes,
    "splits": ("train", "val", "test"),
    "expects": "leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png",
    "licence": "Cityscapes terms; non-commercial, registration",
    "citation": "Cordts et al., The Cityscapes Dataset, CVPR 2016",
    "counts": {"train": 2_975, "val": 500, "test": 1_525},
    "protocol": "stego",
}
_LIP: dict[str, Any] = {
    "find": _lip,
    "splits": ("train", "val"),
    "expects": "TrainVal_images/{train,val}_images/*.jpg and "
    "TrainVal_parsing_annotations/{train,val}_segmentations/*.png",
    "licence": "research use",
    "citation": "Gong et al., Look into Person, CVPR 2017",
    "counts": {"train": 30_462, "val": 10_000},
    "protocol": "transfgu",
}
_IMAGENET_S: dict[str, Any] = {
    "splits": ("train", "train-semi", "val", "test"),
    "licence": "ImageNet terms",
    "citation": "Gao et al., Large-scale Unsupervised Semantic Segmentation, TPAMI 2022",
    "protocol": "native",
}
_VOC: dict[str, Any] = {
    "space": "voc2012",
    "protocol": "native",
    "licence": "Flickr terms; research use",
    "citation": "Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010",
}


def _known_layouts() -> list[Layout]:
    layouts = [
        Layout(
            name="scenes",
            description="The bundled rendered scenes: for tests and the first minute",
            splits=("train", "val"),
            space="scenes",
            protocol="native",
            expects="images/SPLIT, labels/SPLIT and classes.json",
            find=_split_folders,
            licence="Apache-2.0, as this tool",
        ),
        Layout(
            name="camvid",
            description="CamVid, 11 classes: frames of street video",
            splits=("train", "val", "test"),
            space="camvid11",
            protocol="native",
            expects="images/{train,val,test}/*.jpg and labels/{train,val,test}/*.png with classes 0-10, void 11",
            find=_split_folders,
            licence="research use",
            citation="Brostow et al., Semantic object classes in video, PRL 2009",
            counts={"train": 367, "val": 101, "test": 233},
        ),
        Layout(
            name="voc2012",
            description="PASCAL VOC 2012 segmentation, 20 classes and background",
            splits=("train", "val", "trainval", "trainaug"),
            expects="VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}; for trainaug also "
            "SegmentationClassAug and ImageSets/Segmentation/trainaug.txt",
            find=partial(_voc, "2012"),
            counts={"train": 1_464, "val": 1_449, "trainval": 2_913, "trainaug": 10_582},
            **_VOC,
        ),
        Layout(
            name="voc2007",
            description="PASCAL VOC 2007 segmentation, 20 classes and background",
            splits=("train", "val", "trainval", "test"),
            expects="VOC2007/{JPEGImages,SegmentationClass,ImageSets/Segmentation}",
            find=partial(_voc, "2007"),
            counts={"train": 209, "val": 213, "trainval": 422, "test": 210},
            **_VOC,
        ),
        Layout("cityscapes", "Cityscapes, 27 classes: street video", space="cityscapes27", **_CITY),
        Layout(
            "cityscapes19", "Cityscapes, the 19 classes of its own benchmark", space="cityscapes19", **_CITY
        ),
        Layout(
            name="kitti-step",
            description="KITTI-STEP, street video, with the 19 classes of Cityscapes",
            splits=("train", "val"),
            space="cityscapes19-train",
            protocol="stego",
            expects="training/image_02/SEQUENCE/*.png and panoptic_maps/SPLIT/SEQUENCE/*.png",
            find=_kitti_step,
            licence="CC BY-NC-SA 3.0",
            citation="Weber et al., STEP: Segmenting and Tracking Every Pixel, 2021",
            counts={"train": 5_027, "val": 2_981},
        ),
    ]
    for space, text in {
        "cocostuff27": "27 coarse classes",
        "cocostuff15": "its 15 coarse stuff classes",
        "cocostuff3": "sky, plant and ground",
        "cocostuff171": "all 80 things and 91 stuff classes",
    }.items():
        layouts.append(Layout(space, f"COCO-Stuff, {text}", space=space, counts=_COCO_COUNTS, **_COCO))
    layouts += [
        Layout("coco81", "COCO, 80 things and background", space="coco81", counts=_COCO_COUNTS, **_COCO),
        Layout(
            name="coco20k",
            description="COCO-20k, the images of object discovery, 80 things and background",
            splits=("train",),
            space="coco81",
            expects="images/train2014/*.jpg, coco_20k_filenames.txt and annotations/{train2017,val2017}/*.png",
            find=_coco20k,
            counts={"train": 19_817},
            protocol="native",
            licence="Flickr terms; annotations CC BY 4.0",
            citation="Vo et al., Toward unsupervised, multi-object discovery, ECCV 2020",
        ),
        Layout(
            name="potsdam3",
            description="ISPRS Potsdam, 3 classes: aerial tiles of 200x200 pixels",
            splits=("train", "val", "unlabelled"),
            space="potsdam3",
            protocol="stego",
            expects="what `unsupseg datasets prepare potsdam3` writes from the official tiles, or the community's "
            "imgs/*.mat, gt/*.mat and labelled_train.txt, labelled_test.txt, unlabelled_train.txt",
            find=_potsdam,
            licence="ISPRS terms; research use",
            citation="ISPRS 2D Semantic Labeling Contest; cut as by Ji et al., IIC, ICCV 2019",
            counts={"train": 4_545, "val": 855, "unlabelled": 3_150},
        ),
        Layout("lip19", "Look Into Person, 19 parts and background", space="lip20", **_LIP),
        Layout(
            "lip5", "Look Into Person, head, upper body, arms, legs, feet, background", space="lip6", **_LIP
        ),
        Layout("lip16", "Look Into Person, left and right as one, and background", space="lip17", **_LIP),
    ]
    for count, (train, val, test) in {
        50: (64_431, 752, 1_682),
        300: (384_862, 4_097, 9_088),
        919: (1_183_322, 12_419, 27_423),
    }.items():
        layouts.append(
            Layout(
                name=f"imagenet-s{count}",
                description=f"ImageNet-S, {count} classes and everything else",
                space=f"imagenet-s{count}",
                expects=f"ImageNetS{count}/{{train,validation}}/CLASS/*.JPEG and validation-segmentation/CLASS/*.png",
                find=partial(_imagenet_s, count),
                counts={"train": train, "val": val, "test": test},
                **_IMAGENET_S,
            )
        )
    return layouts


LAYOUTS = {layout.name: layout for layout in _known_layouts()}
