"""A run of pretraining on a pack of images, with checkpoints and probes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.label_survey import settle_labels
from unsupseg_cli.data.labels import LabelSpace
from unsupseg_cli.models.vit import MEAN, STD
from unsupseg_cli.pretraining.collapse import warnings
from unsupseg_cli.pretraining.config import PretrainConfig, architecture
from unsupseg_cli.pretraining.encoder import tokens
from unsupseg_cli.pretraining.patch_probe import PatchScores, probe_patches, some_labelled
from unsupseg_cli.pretraining.train import Pretrainer
from unsupseg_cli.training.checkpoint import DiskCheckpoint, Journal
from unsupseg_cli.training.loop import Record, fit

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PACK = ".pack"  # hidden: scratch, which outlives a kill until the artifact is there
START = Path(PACK, "start.safetensors")
_PROBE_EVERY = 200  # steps
_PROBE_LABELLED, _PROBE_SIZE = 32, 176  # images of each split, and their shorter side in pixels


def open_pretrainer(config: PretrainConfig, folder: Path, device: torch.device) -> Pretrainer:
    """Return the task of a run whose images are packed in a folder, at its start."""
    pixels: NDArray[np.uint8] = np.load(folder / PACK / "pixels.npy", mmap_mode="r", allow_pickle=False)
    aspect = torch.from_numpy(np.load(folder / PACK / "aspect.npy", allow_pickle=False))
    pretrainer = Pretrainer(config, pixels, aspect, device)
    if config.start is not None:
        pretrainer.start_from(load_file(folder / START))
    return pretrainer


def train(pretrainer: Pretrainer, fabric: Fabric, folder: Path, reporter: Reporter) -> list[Record]:
    """Train to the end, going on from the checkpoint if there is one; return the records of the whole run."""
    config, schedule, checkpoint = (
        pretrainer.config,
        pretrainer.schedule,
        DiskCheckpoint(folder, reporter.warn),
    )
    first = checkpoint.step()
    journal = Journal(folder, first, fabric.is_global_zero, config.tensorboard)
    if first:
        reporter.info(f"going on after step {first}")

    def log(record: Record) -> None:
        if record["step"] % _PROBE_EVERY == 0:
            health = pretrainer.health()
            for warning in warnings(health):
                reporter.warn(f"step {record['step']:.0f}: {warning}")
            record |= health.as_record()
            if config.probe is not None:
                record |= diagnose(pretrainer).as_record()
        journal.add(record)

    def track(steps: Iterable[int], done: int) -> Iterator[int]:
        total = None if config.hours is not None else config.steps
        return reporter.track(steps, "pretrain", total=total, done=done)

    fit(pretrainer, schedule, fabric, checkpoint=checkpoint, log=log, track=track)
    return journal.records


def probe_data(config: PretrainConfig) -> tuple[LabelSpace, list[Item], list[Item]]:
    """Return the classes, and the labelled images that the probe is fitted on and scored on."""
    root = Path(config.probe_root) if config.probe_root else None
    train, test = (open_dataset(str(config.probe), root=root, split=split) for split in ("train", "val"))
    items = some_labelled(train, _PROBE_LABELLED), some_labelled(test, _PROBE_LABELLED)
    assert train.space is not None  # `some_labelled` refuses a data set without one
    space, _ = settle_labels([*items[0], *items[1]], train.space)
    return space, *items


def diagnose(pretrainer: Pretrainer) -> PatchScores:
    """Score the averaged encoder's patches on some labelled images of another data set."""
    config, encoder = pretrainer.config, pretrainer.encoder
    space, train, test = probe_data(config)

    def encode(image: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(image.copy()).movedim(-1, 0)[None].float() / 255
        pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        with torch.inference_mode():
            return tokens(encoder, pixels.to(pretrainer.device))[1][0].cpu()

    return probe_patches(
        encode,
        train,
        test,
        space,
        size=_PROBE_SIZE,
        patch=architecture(config.arch)["patch_size"],
        seeds=(0,),
        steps=200,
    )
