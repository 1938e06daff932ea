"""Options that several commands share. This module imports no torch, so that ``unsupseg --help`` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from unsupseg_cli.core.config import Config, execution

DEFAULT_WORKSPACE = "unsupseg-workspace"

Precision = Literal["auto", "fp32", "bf16", "fp16"]
GeometryName = Literal["stego", "squash", "five-crop", "ten-crop", "native"]
WHOLE_VIEWS: tuple[GeometryName, ...] = ("native", "squash")
CROPS: tuple[GeometryName, ...] = ("five-crop", "ten-crop")
ResizeFilter = Literal["nearest", "bilinear", "bicubic"]


class DataConfig(Config):
    """Which images. The images enter the key by their content, not by their place."""

    dataset: str | None = execution(None, "Name of a data set, or a folder of images (nested is fine).")
    root: Path | None = execution(None, "Where a named data set lies; remembered per data set.")
    split: str | None = execution(None, "Part of the data set; default: train where it has one.")
    labels: Path | None = execution(None, "Folder of label images, matched by relative name.")
    class_file: Path | None = execution(None, "Class names, ids and colours (JSON, or one name a line).")
    strict: bool = execution(False, "Fail on an unreadable image instead of skipping it.")


class DeviceConfig(Config):
    """Where the work is done; nothing here enters a key."""

    device: str = execution("auto", "auto, cpu, cuda, cuda:1, mps, ...")
    workers: int | None = execution(
        None, "Processes that decode images; default: the cores, at most 8.", ge=0
    )


class BatchConfig(DeviceConfig):
    """Where, and how much at a time."""

    batch_size: int | None = execution(None, "Images of one size at a time; default: by memory.", ge=1)
