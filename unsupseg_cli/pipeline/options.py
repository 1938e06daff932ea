"""The options of `run`, `demo`, `segment` and the exports. This module imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt, field_validator, model_validator

from unsupseg_cli.core.bounds import LONGEST_SIDE
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.options import ClassCount, ExecutorConfig, split
from unsupseg_cli.exchange.table import FormatName


class RunConfig(ExecutorConfig):
    """Run the stages of a recipe; what is given here is given to every stage that knows it."""

    dataset: str | None = execution(None, "Name of a data set, or a folder, instead of the recipe's.")
    root: Path | None = execution(None, "Where the named data set lies; remembered per data set.")
    backbone: str | None = setting(None, "Backbone instead of the recipe's.")
    weights: Path | None = execution(
        None, "Weights file of the backbone (.safetensors, or the original .pth)."
    )
    seed: int | None = setting(None, "Seed of every random choice.", ge=0)
    device: str | None = execution(None, "auto, cpu, cuda, cuda:1, mps, ...; default: auto.")
    workers: int | None = execution(
        None, "Processes that decode images; default: the cores, at most 16.", ge=0
    )
    batch_size: int | None = execution(None, "Images at a time; default: by memory.", ge=1, also=("--batch",))

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of an executor where there is none."""
        return self.unread_of_executor()


class TuneConfig(RunConfig):
    """Choose among settings of recipes without labels."""

    budget: int = execution(
        24, "Most candidates that are tried; of more, the first and others drawn by chance.", ge=2, le=1000
    )
    judged: int = setting(60, "Images that the candidates' segmentations are compared on.", ge=1)


class DemoConfig(Config):
    """The whole chain on the bundled scenes."""

    backbone: str | None = setting(None, "Backbone name instead of the bundled one.")
    seed: int | None = setting(None, "Seed of every random choice.", ge=0)
    device: str | None = execution(None, "auto, cpu, cuda, cuda:1, mps, ...; default: auto.")
    workers: int | None = execution(
        None, "Processes that decode images; default: the cores, at most 16.", ge=0
    )
    batch_size: int | None = execution(None, "Images at a time; default: by memory.", ge=1, also=("--batch",))


class SegmentConfig(DemoConfig):
    """Find classes in images and segment them, in one call."""

    images: tuple[Path, ...] = execution(
        (), "Photos, folders of them (nested is fine), patterns, lists (@FILE), videos.", argument=True
    )
    out: Path | None = execution(
        None, "Folder for label maps, overlays and sheets. Default: NAME-segmented.", short="-o"
    )
    classes: ClassCount = setting("auto", "Number of classes; auto chooses it by the features.")
    weights: Path | None = execution(
        None, "Weights file of the backbone (.safetensors, or the original .pth)."
    )
    strict: bool = execution(False, "Fail on an unreadable image instead of skipping it.")
    step: int | None = execution(
        None, "Take every n-th frame of a named video (extra video); default: one of each second.", ge=1
    )
    windows: int | None = execution(
        None,
        "Cut TIFFs that are larger into windows of this side in pixels: for aerial images (extra geo).",
        ge=32,
        le=LONGEST_SIDE,
    )


class ExportConfig(Config):
    """Write a model with its backbone into one file."""

    out: Path = execution(
        ...,
        "The file to write: NAME.safetensors for `--model`, or NAME.onnx for other programs.",
        short="-o",
    )
    frame: tuple[PositiveInt, PositiveInt] | None = execution(
        None, "Height and width of the images that an .onnx file takes, such as 720x1280."
    )
    size: int | None = execution(
        None, "Shorter side inside an .onnx file; 0 keeps the frame's. Default: as trained.", ge=0
    )
    layout: Literal["frame", "nchw"] = execution(
        "frame",
        "What an .onnx file takes and gives: frame, bytes (1,H,W,3) to a label map; nchw, values 0 to 1 (1,3,H,W) to a "
        "probability map for each class, as QGIS's plugin Deepness expects it of square tiles.",
    )
    weights: Path | None = execution(None, "Weights file of the model's backbone, where it is not found.")

    @field_validator("out")
    @classmethod
    def _known_suffix(cls, value: Path) -> Path:
        if value.suffix not in (".safetensors", ".onnx"):
            raise ValueError("expected a file whose name ends in .safetensors or .onnx")
        return value

    @field_validator("frame", mode="before")
    @classmethod
    def _two_sides(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        sides = value.lower().replace("x", ",").split(",")
        if len(sides) != 2 or not all(side.strip().isdecimal() for side in sides):
            raise ValueError("expected HEIGHTxWIDTH in pixels, such as 720x1280")
        return tuple(side.strip() for side in sides)

    @model_validator(mode="after")
    def _kind_of_file(self) -> ExportConfig:
        if self.out.suffix == ".onnx" and self.frame is None:
            raise ValueError("an .onnx file takes images of one size: give it as --frame HEIGHTxWIDTH")
        if self.out.suffix != ".onnx" and (self.frame, self.size, self.layout) != (None, None, "frame"):
            raise ValueError(
                "--frame, --size and --layout are of .onnx files; a .safetensors file takes any image"
            )
        return self


class ExportMasksConfig(Config):
    """Write masks into a COCO file."""

    out: Path = execution(..., "The file to write: NAME.json.", short="-o")
    format: Literal["rle", "polygon"] = execution(
        "rle", "Compressed run lengths, or polygons along the edges of pixels; both give back every pixel."
    )

    @field_validator("out")
    @classmethod
    def _known_suffix(cls, value: Path) -> Path:
        if value.suffix.lower() != ".json":
            raise ValueError("expected a file whose name ends in .json")
        return value


class ExportLabelsConfig(Config):
    """Write label maps in the format of another program."""

    format: FormatName = execution(..., "The format, see docs/exchange.md.")
    out: Path = execution(..., "The file or folder to write.", short="-o")
    things: tuple[str, ...] = execution(
        (),
        "Classes whose connected regions are objects, such as car,3: coco-panoptic divides these, the formats of "
        "regions write these alone. Default: coco-panoptic divides none, the others write all.",
    )
    min_area: int = execution(1, "Regions of fewer pixels are left out where regions are written.", ge=1)
    bring_images: Literal["link", "copy", "none"] = execution(
        "link", "Whether coco-panoptic, yolo-seg and voc bring the images along, as links or as copies."
    )
    url: str = execution("", "What the addresses of images begin with in label-studio.")

    @field_validator("things", mode="before")
    @classmethod
    def _split_things(cls, value: object) -> object:
        return split(value)

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of other formats."""
        regions: tuple[FormatName, ...] = ("coco-instances", "yolo-seg", "geojson", "gpkg")
        readers: dict[str, tuple[FormatName, ...]] = {
            "things": ("coco-panoptic", *regions),
            "min_area": ("coco-panoptic", *regions),
            "bring_images": ("coco-panoptic", "yolo-seg", "voc"),
            "url": ("label-studio",),
        }
        unread = {
            name: f"it is read with --format {' or '.join(formats)}"
            for name, formats in readers.items()
            if self.format not in formats
        }
        if self.format == "coco-panoptic" and not self.things:
            unread["min_area"] = "coco-panoptic writes no regions without --things"
        return unread
