"""Options that several commands share. This module imports no torch, so that ``unsupseg --help`` is quick."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from unsupseg_cli.core.bounds import LONGEST_SIDE
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.stretch import parse_stretch

DEFAULT_WORKSPACE = "unsupseg-workspace"

Precision = Literal["auto", "fp32", "bf16", "fp16"]
GeometryName = Literal["stego", "squash", "five-crop", "ten-crop", "native"]
WHOLE_VIEWS: tuple[GeometryName, ...] = ("native", "squash")
CROPS: tuple[GeometryName, ...] = ("five-crop", "ten-crop")
RegionKind = Literal["anchors", "pyramid", "masks"]
Embedding = Literal["crop", "masked"]
ClassCount = Annotated[int, Field(ge=1)] | Literal["auto"]
Directions = Annotated[int, Field(ge=0, le=256)] | Literal["auto"]


def deepest_first(value: object) -> object:
    """Return the blocks in a number, a text such as ``-5,-3`` or a list: of several a tuple, the deepest first."""
    several = split(str(value) if isinstance(value, int) else value)
    try:
        numbers = {int(block) for block in several} if isinstance(several, list | tuple) else set[int]()
        blocks = sorted(numbers, reverse=True)
    except (TypeError, ValueError):
        blocks = []
    if not blocks or not -_MOST_BLOCKS <= blocks[-1] <= blocks[0] <= -1:
        raise ValueError(
            "expected the number of a block, negative, counted from the last: -1; or several such as -1,-3"
        )
    return blocks[0] if len(blocks) == 1 else tuple(blocks)


_MOST_BLOCKS = 256
Layer = Annotated[int | tuple[int, ...], BeforeValidator(deepest_first)]
"""The block whose tokens are taken, -1 is the last; or several blocks, the deepest first."""

ResizeFilter = Literal["nearest", "bilinear", "bicubic", "tensor"]
StoreDtype = Literal["float16", "int8"]
INT8_ARRAYS = ("patch", "query", "key")
"""What ``int8`` is of: attention has few channels, with values of all magnitudes."""


def _require_tensorboard(folder: Path | None) -> Path | None:
    """Return the folder that events go to, if any; raises ValueError where the package for them is missing."""
    if folder is not None and find_spec("tensorboard") is None:
        raise ValueError("it needs the package tensorboard: pip install 'unsupseg[tensorboard]'")
    return folder


EventFolder = Annotated[Path | None, AfterValidator(_require_tensorboard)]


def _require_engine(name: str | None) -> str | None:
    """Return the executor's name; raises ValueError where its package is missing."""
    if name is not None and find_spec(name) is None:
        raise ValueError(f"it needs the package {name}: pip install 'unsupseg[{name}]'")
    return name


class ExecutorConfig(Config):
    """Who does the work, where it is not this machine alone; nothing here enters a key."""

    executor: Annotated[Literal["ray"] | None, AfterValidator(_require_engine)] = execution(
        None,
        "Let others work: ray, the actors of a Ray cluster (extra ray), each with a device of its own, which see the "
        "workspace on a common disk. Default: this machine.",
    )
    address: str | None = execution(
        None,
        "Where the executor is, HOST:PORT; default: RAY_ADDRESS, the cluster of this machine, or one started for this "
        "call.",
    )

    def unread_of_executor(self) -> dict[str, str]:
        """Return the options of an executor where there is none."""
        return {} if self.executor else {"address": "it is read with --executor"}


class DividedConfig(ExecutorConfig):
    """How many processes make the artifact, each a shard of it; nothing here enters a key."""

    devices: int = execution(
        1,
        "GPUs (or CPU processes) that share the work; with --executor those asked for, else all that are there.",
        ge=1,
    )
    shard: str | None = execution(
        None,
        "Make the share i of n processes (i/n), which may run at once, on one or on several machines with a common "
        "disk; the last one publishes and prints the path, the others print nothing.",
    )

    @model_validator(mode="after")
    def _divided_once(self) -> Self:
        if self.executor is not None and self.shard is not None:
            raise ValueError("--executor and --shard do not go together: the executor makes all shards")
        return self


class DataConfig(Config):
    """Which images. The images enter the key by their content, not by their place."""

    dataset: str | None = execution(
        None, "Name of a data set, or a folder of images (nested is fine).", alone=True
    )
    root: Path | None = execution(None, "Where a named data set lies; remembered per data set.")
    split: str | None = execution(None, "Part of the data set; default: train where it has one.")
    labels: Path | None = execution(None, "Folder of label images, matched by relative name.")
    class_file: Path | None = execution(None, "Class names, ids and colours (JSON, or one name a line).")
    image_suffix: str | None = execution(
        None,
        "Ending of images' names, such as _image of 7_image.jpg; other files of the folder are no images.",
    )
    label_suffix: str | None = execution(None, "Ending of labels' names, such as _label of 7_label.png.")
    pages: bool = execution(False, "Take every page of a TIFF as an image of its own.")
    windows: int | None = execution(
        None,
        "Cut TIFFs that are larger into windows of this side in pixels, each an image of its own (extra geo).",
        ge=32,
        le=LONGEST_SIDE,
    )
    strict: bool = execution(False, "Fail on an unreadable image instead of skipping it.")


class NamedImagesConfig(DataConfig):
    """Images that are named one by one, instead of a data set."""

    images: tuple[Path, ...] = execution(
        (),
        "Images, folders, videos, patterns in quotes, or @FILE, a list of these; or name a data set with --dataset.",
        argument=True,
    )
    step: int | None = execution(
        None, "Take every n-th frame of a named video (extra video); default: one of each second.", ge=1
    )

    def unread_of_images(self) -> dict[str, str]:
        """Return the options of a data set where images are named, and of videos where none can be."""
        if not self.images:
            return {"step": "it is read where a video is named"}
        fields = ("dataset", "root", "split", "labels", "class_file", "image_suffix", "label_suffix")
        named = "images or folders are named"
        return {**dict.fromkeys(fields, f"{named}, and it goes with --dataset"), "dataset": named}


class PixelConfig(Config):
    """How stored values become colours. What is made from the features, and their model, does the same."""

    bands: tuple[int, ...] | None = setting(
        None,
        "Bands shown as red, green and blue, counted from 1, such as 4,3,2; one is gray. Default: the first three.",
    )
    stretch: str | None = setting(
        None,
        "Values that become black and white: percentiles of the collection such as 2,98 or 0%,1%; values such as "
        "0,3000 or 0,0.4 (below 0, above 100, or none above 1); none (by the type: 0 to 65,535, floats 0 to 1); image "
        "(each by itself). Default: 8 bits as they are; others by what the collection fills, at best 2,98.",
    )

    @field_validator("bands", mode="before")
    @classmethod
    def _split_bands(cls, value: object) -> object:
        return split(value)

    @field_validator("bands")
    @classmethod
    def _bands_fit(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (len(value) not in (1, 3) or min(value) < 1):
            raise ValueError("expected one band or three, counted from 1, such as 4,3,2")
        return value

    @field_validator("stretch")
    @classmethod
    def _stretch_fits(cls, value: str | None) -> str | None:
        if value not in (None, "none", "image"):
            parse_stretch(str(value))
        return value


class RegionConfig(Config):
    """Which boxes of the images, instead of whole images."""

    regions: RegionKind | None = setting(
        None,
        "Embed boxes instead of whole images, and store `regions`: anchors (squares of several scales, by the CLS "
        "attention of features), pyramid (the image and grids of parts), masks (the boxes of masks).",
    )
    embed: Embedding = setting(
        "crop",
        "How a box is embedded: crop, a forward of its own; masked, one forward of the whole image (--geometry and "
        "--size say how), whose CLS token attends in the last block to the patches under the box alone.",
    )
    scales: tuple[float, ...] = setting(
        (0.5, 0.4, 0.3, 0.2),
        "Sides of the anchors over the image's shorter side.",
        source="TransFGU, public code for COCO; VOC takes 0.6,0.5,0.4,0.3",
    )
    foreground_share: float = setting(
        0.5,
        "An anchor is kept as foreground where the CLS attention exceeds its mean on more than this share of it; 0 "
        "keeps all and needs no features.",
        source="TransFGU, public code: 0.5; none for Cityscapes and LIP",
        ge=0,
        lt=1,
    )
    background_share: float = setting(
        0.8,
        "An anchor is kept as background where more than this share of it is not foreground; 1 keeps none.",
        source="TransFGU, public code for COCO; VOC keeps none",
        ge=0,
        le=1,
    )
    levels: int = setting(
        2, "Highest level of the pyramid: level l is a grid of (l + 1) x (l + 1) parts.", ge=0, le=15
    )
    overlap: float = setting(0.25, "Share of a part of the pyramid that the next one covers too.", ge=0, lt=1)

    @field_validator("scales", mode="before")
    @classmethod
    def _split_scales(cls, value: object) -> object:
        return split(value)

    @field_validator("scales")
    @classmethod
    def _scales_fit(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 < scale <= 1 for scale in value):
            raise ValueError("expected numbers above 0, at most 1, separated by commas")
        return value

    def unread_of_regions(self) -> dict[str, str]:
        """Return the options of other regions than those asked for."""
        readers = {
            "scales": "anchors",
            "foreground_share": "anchors",
            "background_share": "anchors",
            "levels": "pyramid",
            "overlap": "pyramid",
        }
        unread = {
            name: f"it is read with --regions {kind}"
            for name, kind in readers.items()
            if kind != self.regions
        }
        if self.regions is None:
            unread["embed"] = "it is read with --regions"
        if self.regions == "anchors" and self.foreground_share == 0:
            unread["background_share"] = "with --foreground-share 0 every anchor is foreground"
        return unread


def split(value: object) -> object:
    """Return the parts of a text between commas, and anything else as it is."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


class DeviceConfig(Config):
    """Where the work is done; nothing here enters a key."""

    device: str = execution("auto", "auto, cpu, cuda, cuda:1, mps, ...")
    workers: int | None = execution(
        None, "Processes that decode images; default: the cores, at most 16.", ge=0
    )


class BatchConfig(DeviceConfig):
    """Where, and how much at a time."""

    batch_size: int | None = execution(
        None, "Images of one size at a time; default: by memory.", ge=1, also=("--batch",)
    )
