"""The options of the stages. This module imports no torch, so that ``unsupseg --help`` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt, field_validator, model_validator

from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.crf.config import CRFConfig

Precision = Literal["auto", "fp32", "bf16", "fp16"]
GeometryName = Literal["stego", "squash", "five-crop", "ten-crop", "native"]
WHOLE_VIEWS: tuple[GeometryName, ...] = ("native", "squash")
ResizeFilter = Literal["nearest", "bilinear", "bicubic"]
Matching = Literal["hungarian", "iou", "majority", "per-image"]


class DataConfig(Config):
    """Which images. The images enter the key by their content, not by their place."""

    dataset: str | None = execution(None, "Name of a data set, or a folder of images (nested is fine).")
    root: Path | None = execution(None, "Where a named data set lies; remembered per data set.")
    split: str | None = execution(None, "Part of the data set; default: train where it has one.")
    labels: Path | None = execution(None, "Folder of label images, matched by relative name.")
    class_file: Path | None = execution(None, "Class names, ids and colours (JSON, or one name a line).")
    strict: bool = execution(False, "Fail on an unreadable image instead of skipping it.")


class DeviceConfig(Config):
    """How the work is done; nothing here enters a key."""

    device: str = execution("auto", "auto, cpu, cuda, cuda:1, mps, ...")
    workers: int | None = execution(
        None, "Processes that decode images; default: the cores, at most 8.", ge=0
    )
    batch_size: int | None = execution(None, "Images at a time; default: by memory.", ge=1)


class ExtractConfig(DataConfig, DeviceConfig):
    """Run a frozen backbone over the images and store its features.

    ``store`` does not enter the key: it says how the bytes lie on disk, not what they say, so that whatever was
    made from the features of one store is also what the other's would give. The digest of the artifact is
    that of the arrays before they are packed, equal for both.
    """

    backbone: str = setting("auto", "Backbone name (`unsupseg backbones list`), or a `backbone` artifact.")
    weights: Path | None = execution(None, "Weights file (.safetensors, or the original .pth).")
    geometry: GeometryName = setting("native", "How an image becomes views: native keeps it whole.")
    size: int | None = setting(320, "Length of a view's shorter side in pixels; 0 keeps the image's.", ge=0)
    ratios: tuple[float, ...] = setting(
        (0.5,), "Sides of five- and ten-crops over the image's; several, such as 0.5,0.8, for several scales."
    )
    filter: ResizeFilter = setting("bilinear", "Filter of the resize.")
    layer: int = setting(-1, "Block whose tokens are kept; -1 is the last.", le=-1)
    norm: bool = setting(True, "Apply the backbone's final norm to the tokens.")
    pos_embed: Literal["original", "timm"] = setting("original", "How position embeddings are interpolated.")
    position: float = setting(
        0.0,
        "Append each token's place in the image, this many times as long as the token: for collections with one "
        "point of view, such as street scenes. 0 leaves it out.",
        ge=0,
        le=10,
    )
    keep: tuple[str, ...] = setting(
        ("patch", "cls", "pooled"), "Arrays to store: patch, cls, pooled, attention, query, key."
    )
    precision: Precision = setting("auto", "Arithmetic of the backbone; auto: bf16 where the device has it.")
    devices: int = execution(1, "GPUs (or CPU processes) that share the work.", ge=1)
    store: Literal["zarr", "hdf5"] = execution(
        "zarr", "Files of the arrays: zarr shards, or one HDF5 file (packed at the end)."
    )

    @field_validator("keep", "ratios", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("keep")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = ("patch", "cls", "pooled", "attention", "query", "key")
        if not value or set(value) - set(known):
            raise ValueError(f"expected some of {', '.join(known)}, separated by commas")
        return tuple(name for name in known if name in value)

    @model_validator(mode="after")
    def _whole(self) -> ExtractConfig:
        if self.position and self.geometry not in WHOLE_VIEWS:
            raise ValueError(
                "--position needs views of whole images: --geometry "
                f"{' or '.join(WHOLE_VIEWS)}, not {self.geometry}"
            )
        return self


class PseudolabelConfig(DeviceConfig):
    """Make pseudo-masks from features (and images, for a method that refines them with a CRF)."""

    features: str | None = execution(None, "Features artifact; default: the last one of a training split.")
    method: str = setting("kmeans", "Method (`unsupseg methods list`).")
    classes: int | None = setting(None, "Number of classes K; default: that of the label space.", ge=1)
    keep: Literal["labels", "soft"] = setting("labels", "`soft` also stores soft masks, for `refine`.")
    sheet: int = execution(12, "Views on the picture sheet.", ge=0)
    seed: int = setting(0, "Seed of every random choice.", ge=0)


class TrainConfig(DeviceConfig):
    """Train a segmentation head on features and pseudo-labels."""

    features: str | None = execution(None, "Features artifact; default: those of the pseudo-labels.")
    pseudolabels: str | None = execution(None, "Pseudo-labels artifact; default: the last one.")
    graph: str | None = execution(None, "Graph artifact, for a method that needs one; default: the last one.")
    method: str | None = setting(None, "Method; default: that of the pseudo-labels.")
    classes: int | None = setting(None, "Number of classes K; default: that of the pseudo-labels.", ge=1)
    tokens: Literal["stored", "live"] = setting(
        "stored",
        "stored features (fast), or live: the frozen backbone in the loop, with the method's augmentation.",
    )
    seed: int = setting(0, "Seed of every random choice.", ge=0)


class PredictConfig(DataConfig, DeviceConfig):
    """Segment images with a model: whole image, original size, any aspect ratio."""

    model: str | None = execution(None, "Model artifact, or a file of `export`; default: the last one.")
    weights: Path | None = execution(None, "Weights file of the model's backbone, where it is not found.")
    size: int | None = setting(
        None, "Shorter side in pixels; 0 keeps the image's. Default: as trained.", ge=0
    )
    flip: bool = setting(False, "Average the image with its mirror image.")
    tile: int | None = setting(None, "Side of a tile in pixels; default: tiles only for large images.", ge=32)
    overlap: float = setting(0.25, "Share of a tile that its neighbour covers too.", ge=0, le=0.9)
    keep: Literal["labels", "scores"] = setting("labels", "`scores` also stores log-probabilities.")
    overlay: bool = setting(True, "Also write pictures: the classes over the image, with a legend.")
    only: str | None = setting(None, "Show only this class (name or number) in the pictures.")
    precision: Precision = setting("auto", "Arithmetic of the backbone.")


class ClassesConfig(Config):
    """Look at the classes of a model, or change them."""

    model: str | None = execution(None, "Model artifact, or a file of `export`; default: the last one.")


class ExportConfig(Config):
    """Write a model with its backbone into one file."""

    out: Path = execution(
        ..., "The file to write: NAME.safetensors for `--model`, or NAME.onnx for other programs."
    )
    frame: tuple[PositiveInt, PositiveInt] | None = execution(
        None, "Height and width of the images that an .onnx file takes, such as 720x1280."
    )
    size: int | None = execution(
        None, "Shorter side inside an .onnx file; 0 keeps the frame's. Default: as trained.", ge=0
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
        if len(sides) != 2:
            raise ValueError("expected HEIGHTxWIDTH in pixels, such as 720x1280")
        return tuple(side.strip() for side in sides)

    @model_validator(mode="after")
    def _kind_of_file(self) -> ExportConfig:
        if self.out.suffix == ".onnx" and self.frame is None:
            raise ValueError("an .onnx file takes images of one size: give it as --frame HEIGHTxWIDTH")
        if self.out.suffix != ".onnx" and (self.frame, self.size) != (None, None):
            raise ValueError("--frame and --size are of .onnx files; a .safetensors file takes any image")
        return self


class EvalConfig(DataConfig, DeviceConfig):
    """Score a model or predictions against labels."""

    model: str | None = execution(None, "Model artifact, or a file of `export`; default: the last one.")
    predictions: str | None = execution(None, "Score these predictions instead of a model.")
    weights: Path | None = execution(None, "Weights file of the model's backbone, where it is not found.")
    protocol: str = setting("auto", "Named rules of geometry, filter and matching (`unsupseg protocols`).")
    matching: Matching | None = setting(None, "How clusters get classes; default: the protocol's.")
    assignment: str | None = execution(None, "Take the matching from this evaluation instead.")
    flip: bool | None = setting(None, "Average with the mirror image; default: the protocol's.")
    crf: bool = setting(False, "Refine with the dense CRF at the scale of the labels.")
    linear_probe: bool = setting(False, "Also fit a supervised linear probe on the training split's labels.")
    probe_steps: int = setting(500, "Steps of the linear probe.", ge=1)
    precision: Precision = setting("auto", "Arithmetic of the backbone.")
    seed: int = setting(0, "Seed of the linear probe.", ge=0)
    sheet: int = execution(8, "Images on the picture sheet.", ge=0)


class DemoConfig(DeviceConfig):
    """The chain of the baseline on the bundled scenes."""

    backbone: str = setting("auto", "Backbone name.")
    seed: int = setting(0, "Seed of every random choice.", ge=0)


class RefineConfig(CRFConfig):
    """Refine predictions, or soft pseudo-labels, with a dense CRF."""

    predictions: str | None = execution(None, "Predictions with --keep scores; default: the last ones.")
    pseudolabels: str | None = execution(None, "Refine these pseudo-labels (--keep soft) instead.")
    label_confidence: float | None = setting(
        None, "Take hard labels, each with this probability.", gt=0, lt=1
    )
    workers: int | None = execution(None, "Images at a time; default: the cores, at most 8.", ge=0)
    device: str = execution("cpu", "cpu, or a GPU for the engines torch and exact (not measured there yet).")
    sheet: int = execution(12, "Views on the picture sheet of pseudo-labels.", ge=0)

    def crf(self) -> CRFConfig:
        """Return the CRF's own options, with the engine settled."""
        fields = {name: getattr(self, name) for name in CRFConfig.model_fields}
        return CRFConfig(**fields).resolved()


class GraphConfig(Config):
    """Find the nearest neighbours of every view."""

    device: str = execution("auto", "auto, cpu, cuda, cuda:1, mps, ...")
    features: str | None = execution(None, "Features artifact; default: the last one.")
    neighbors: int = setting(
        30, "Neighbours of a view, itself left out.", ge=1, le=10_000, source="STEGO, precompute_knns.py: 30"
    )
    engine: Literal["auto", "exact", "faiss"] = setting(
        "auto", "exact, or faiss for large collections; auto: faiss beyond 100,000 views."
    )


class RunConfig(Config):
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
        None, "Processes that decode images; default: the cores, at most 8.", ge=0
    )
    batch_size: int | None = execution(None, "Images at a time; default: by memory.", ge=1)
